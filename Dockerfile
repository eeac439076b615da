# The image of a Portico node: the program and its libraries, and nothing else, not even a shell.
#
#   docker build -t portico .          or: make image
#   docker run -v /srv/portico:/etc/portico:ro -p 143:143 -p 993:993 -p 443:443 portico
#   docker run -v … portico check      check the configuration
#
# /etc/portico holds portico.yaml, directory.yaml and the certificates they name; all must be readable by the
# user `portico` (uid 10001). In a container write the logs to standard output: `log: {access: "-", audit: "-"}`.
#
# Ports below 1024. The process does not run as root. Docker (20.10 and later) lets any user in a container bind any
# port. Where it does not, as in some Kubernetes clusters, choose one:
#   - listen on high ports in portico.yaml and map them (`-p 993:1993`);
#   - --sysctl net.ipv4.ip_unprivileged_port_start=0 (Kubernetes: securityContext.sysctls);
#   - --cap-add NET_BIND_SERVICE helps only together with a file capability on the binary (setcap in an image of
#     your own), because the user is not root.
#
# SIGHUP reads the node file, the directory and the certificates again (`docker kill -s HUP`). SIGTERM stops within
# `shutdown_timeout` of portico.yaml (30 seconds): give `docker stop -t` and Kubernetes'
# terminationGracePeriodSeconds some seconds more; docker's default of 10 is too short, so set one of them. An
# upgrade is not possible here, because the container ends with its first process: start a new container.
#
# A read-only root file system is sufficient: `--read-only --tmpfs /run/portico`.

FROM rust:1-bookworm AS build
# The same packages as in `scripts/install build`.
RUN apt-get update \
 && apt-get install -y --no-install-recommends build-essential ca-certificates cmake libclang-dev \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN cargo build --release --locked --package proxy-app \
 && scripts/rootfs /rootfs target/release/portico \
 && mkdir /own \
 && mv /rootfs/run /rootfs/var /own/

FROM scratch
COPY --from=build /rootfs /
# A copy belongs to root; these are written by the program.
COPY --from=build --chown=10001:10001 /own /
USER portico
WORKDIR /etc/portico
EXPOSE 80 443 143 993 110 995 6071
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/portico"]
CMD ["-c", "/etc/portico/portico.yaml"]
