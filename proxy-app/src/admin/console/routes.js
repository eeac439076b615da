// Where would this login go, and why? Forgets a route on demand.

import { get, send } from "./api.js";
import { busy, duration, field, h, name, note, pill } from "./dom.js";

export const title = "Routes";

function line(what, ...value) {
  return [h("dt", {}, what), h("dd", {}, value)];
}

function age(seconds) {
  return seconds === null || seconds === undefined ? "" : `, ${duration(seconds)} old`;
}

function tier(one) {
  const says = {
    account: () => [name(one.account), one.server ? [" is on ", name(one.server)] : " is on an external server", age(one.age)],
    nobody: () => ["no such account", age(one.age)],
    nothing: () => ["no entry"],
    failed: () => ["failed: ", name(one.why ?? "")],
  };
  return line(`${one.tier[0].toUpperCase()}${one.tier.slice(1)}`, (says[one.says] ?? (() => [one.says]))());
}

function explained(answer) {
  const lines = [line("Login", name(answer.login), answer.suffix ? [", typed with ", h("code", {}, answer.suffix)] : null)];
  if (answer.domain) {
    const domain = answer.domain;
    const unknown = domain.known || domain.found_by === "service" ? null : "; it is not in the directory";
    lines.push(line("Domain", name(domain.name), ": ", name(domain.because), domain.target ? ["; it is an alias of ", name(domain.target)] : null, unknown));
  }
  if (answer.name) lines.push(line("Looked up as", name(answer.name)));
  if (answer.account) {
    const account = answer.account;
    lines.push(line("Account", name(account.name), account.alias ? "; the login is an alias of it" : null));
    lines.push(line("Status", pill(account.status, account.status === "active" ? "good" : "warn")));
    lines.push(line("Mailbox", account.server ? ["on ", name(account.server)] : "on no server"));
    if (account.id) lines.push(line("Id", h("span", { class: "mono" }, name(account.id))));
  } else if (answer.no_account) {
    lines.push(line("Account", name(answer.no_account)));
  }
  lines.push(answer.tiers.map(tier));
  const way = answer.route;
  if (way) {
    const tls = way.tls ? ["with TLS as ", name(way.tls)] : "in clear text";
    lines.push(line("Route", h("strong", {}, name(`${way.host}:${way.port}`)), " ", tls, `, from ${way.tier}`, age(way.age)));
    lines.push(line("Server", name(way.server), way.external ? ", not in the directory" : null));
    lines.push(line("Logs in as", name(way.login)));
  } else {
    lines.push(line("Route", pill("no route", "bad"), " ", name(answer.no_route ?? "")));
  }
  return h("dl", {}, lines);
}

export function show(root, { mayChange, attempt }) {
  const login = field("Login as the user types it, or a zimbraId", "input", { id: "login", autocomplete: "off", autocapitalize: "off", spellcheck: "false", required: true });
  const protocols = [["imap", "IMAP"], ["pop3", "POP3"], ["web", "Web"], ["admin", "Administration"]];
  const protocol = field("Protocol", "select", { id: "protocol" }, protocols.map(([value, text]) => h("option", { value }, text)));
  const ip = field("Client address", "input", { placeholder: "any that is allowed", autocomplete: "off", spellcheck: "false" });
  const host = field("Host name the client asks for", "input", { placeholder: "none", autocomplete: "off", spellcheck: "false" });
  const local = field("Local address it connects to", "input", { placeholder: "none", autocomplete: "off", spellcheck: "false" });
  const go = h("button", { type: "submit", class: "main", id: "explain" }, "Explain");
  const result = h("div", { "aria-live": "polite" });

  async function explain() {
    result.replaceChildren();
    let answer;
    const asked = login.input.value.trim();
    try {
      answer = await get("/v1/routes/explain", {
        login: asked,
        protocol: protocol.input.value,
        ip: ip.input.value.trim(),
        host: host.input.value.trim(),
        local: local.input.value.trim(),
      });
    } catch (error) {
      if (error instanceof TypeError) throw error;
      result.append(note(error.message, "bad"));
      return;
    }
    const card = h("div", { class: "card", id: "explained" }, answer.in_the_way.map((text) => note(text, "warn")), explained(answer));
    if (mayChange) card.append(h("div", { class: "row end" }, forget(asked)));
    result.append(card);
  }

  function forget(asked) {
    const button = h("button", {
      type: "button",
      click: () => attempt(() => busy(button, async () => {
        const answer = await send("POST", "/v1/routes/purge", { logins: [asked] });
        await explain();
        const names = answer.accounts.flatMap((account) => account.names.map((one) => one.name));
        result.prepend(note(`Purged: ${names.join(", ")}`, "good"));
      })),
    }, "Purge this route");
    return button;
  }

  const form = h("form", {
    class: "card",
    submit: (event) => {
      event.preventDefault();
      attempt(() => busy(go, explain));
    },
  }, h("div", { class: "row" }, login.box, protocol.box), h("details", { class: "more" }, h("summary", {}, "Where the client comes from"), h("div", { class: "row" }, ip.box, host.box, local.box)), h("div", { class: "row end" }, go));
  root.append(form, result);
  return {};
}
