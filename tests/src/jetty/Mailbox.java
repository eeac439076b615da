// The servlets of a mailbox server as Jetty finds them: each says who it is, and nothing else.

import java.io.IOException;
import java.net.InetSocketAddress;
import javax.servlet.http.HttpServlet;
import javax.servlet.http.HttpServletRequest;
import javax.servlet.http.HttpServletResponse;
import org.eclipse.jetty.server.Server;
import org.eclipse.jetty.server.handler.ContextHandlerCollection;
import org.eclipse.jetty.servlet.ServletContextHandler;
import org.eclipse.jetty.servlet.ServletHolder;

public class Mailbox {
    public static void main(String[] args) throws Exception {
        Server server = new Server(new InetSocketAddress(args[0], Integer.parseInt(args[1])));
        ServletContextHandler service = new ServletContextHandler(null, "/service");
        serve(service, "admin", "/admin/*");
        serve(service, "extension", "/extension/*");
        serve(service, "service", "/*");
        ServletContextHandler root = new ServletContextHandler(null, "/");
        serve(root, "home", "/home/*");
        serve(root, "root", "/*");
        server.setHandler(new ContextHandlerCollection(service, root));
        server.start();
        server.join();
    }

    private static void serve(ServletContextHandler context, String name, String paths) {
        context.addServlet(new ServletHolder(name, new Named()), paths);
    }

    public static class Named extends HttpServlet {
        @Override
        protected void service(HttpServletRequest request, HttpServletResponse response) throws IOException {
            response.setHeader("X-Servlet", getServletName());
            response.getOutputStream().println(request.getServletPath() + " " + request.getPathInfo());
        }
    }
}
