// Whom the throttle holds off, and why; failures forgotten and networks let through, on all nodes.

import { get, send } from "./api.js";
import { busy, confirmed, count, duration, empty, field, h, name, note, others, pill, table, time } from "./dom.js";

export const title = "Throttle";

// For how long a network can be let through here, in seconds.
const TIMES = [[3600, "1 hour"], [8 * 3600, "8 hours"], [86400, "1 day"], [7 * 86400, "7 days"], [30 * 86400, "30 days"]];
const MODES = { on: ["on", "good"], dry_run: ["dry run", "warn"], off: ["off", ""] };

function mode(one) {
  const [text, kind] = MODES[one.mode] ?? [one.mode, ""];
  return pill(text, kind);
}

function limit(number) {
  return number === 0 ? "never" : count(number);
}

function everywhere(answer) {
  const done = (answer.nodes ?? []).filter((node) => !node.error).length;
  return done > 0 ? ` (on ${done + 1} nodes)` : "";
}

function explained(answer) {
  const line = (what, ...value) => [h("dt", {}, what), h("dd", {}, value)];
  const rules = table([
    { title: "Rule", cell: (one) => [name(one.rule), " ", mode(one)] },
    { title: "Failures", class: "number", cell: (one) => h("span", {}, count(one.failures)) },
    { title: "Delays from", class: "number", cell: (one) => h("span", {}, limit(one.delay_from)) },
    { title: "Refuses from", class: "number", cell: (one) => h("span", {}, limit(one.refuse_from)) },
    { title: "Now", cell: (one) => pill(one.action, one.action === "pass" ? "good" : one.action === "refuse" ? "bad" : "warn") },
  ], (one) => one.rule);
  rules.update(answer.rules);
  const known = answer.known === null ? "no" : `since ${duration(answer.known)}`;
  return h("div", { class: "card", id: "throttle-explained" }, note(`The throttle ${answer.verdict}.`, answer.retry_after === null ? "good" : "warn"), h("dl", {},
    line("Account", name(answer.account)),
    line("Client", name(answer.client)),
    line("Known there", known),
    answer.allowed ? line("Let through", name(answer.allowed)) : null,
    line("Accounts", `${count(answer.accounts)} have logged in from there; ${count(answer.tolerated)} failures are tolerated`)), rules.element);
}

export function show(root, { mayChange, attempt }) {
  const said = h("div", { "aria-live": "polite" });
  const tiles = h("p", { class: "soft" });
  const none = h("div");
  const noneAllowed = h("div");

  const done = (answer, text) => said.replaceChildren(note(text + everywhere(answer), "good"), ...others(answer));

  async function clear(what, body, button) {
    if (!(await confirmed(`Forget the failed logins ${what}?`, ["Where an account is known stays known. Guesses begin to count anew."], "Forget"))) return;
    await busy(button, async () => {
      done(await send("POST", "/v1/throttle/clear", body), `Failed logins ${what} are forgotten.`);
      await refresh();
    });
  }

  const button = (text, label, act) => {
    const made = h("button", { type: "button", class: "small danger", "aria-label": label, click: () => attempt(() => act(made)) }, text);
    return made;
  };
  const heldColumns = [
    { title: "Account", class: "account", sees: (one) => one.account, cell: (one) => name(one.account) },
    { title: "Client", class: "address", sees: (one) => one.client, cell: (one) => name(one.client) },
    { title: "Rule", sees: (one) => [one.rule, one.mode], cell: (one) => [name(one.rule), one.mode === "on" ? null : mode(one)] },
    { title: "Failures", class: "number", sees: (one) => one.count, cell: (one) => h("span", {}, count(one.count)) },
    { title: "Delayed", class: "number", sees: (one) => one.delayed, cell: (one) => h("span", {}, count(one.delayed)) },
    { title: "Refused", class: "number", sees: (one) => one.refused, cell: (one) => h("span", {}, count(one.refused)) },
    { title: "Last", sees: (one) => one.last, cell: (one) => time(one.last) },
    { title: "Until", sees: (one) => one.until, cell: (one) => time(one.until) },
  ];
  const allowedColumns = [
    { title: "Network", class: "address", cell: (one) => name(one.network) },
    { title: "Until", cell: (one) => time(one.until) },
    { title: "Reason", class: "why", cell: (one) => name(one.reason) },
  ];
  if (mayChange) {
    heldColumns.push({
      title: "Forget",
      class: "act",
      sees: (one) => [one.account, one.client],
      cell: (one) => button("Forget…", `Forget the failed logins of ${one.account} from ${one.client}`, (made) =>
        clear(`of ${one.account} from ${one.client}`, { login: one.account, ip: one.client.split("/")[0] }, made)),
    });
    allowedColumns.push({
      title: "End",
      class: "act",
      sees: (one) => one.network,
      cell: (one) => button("End", `End the allowance of ${one.network}`, (made) => busy(made, async () => {
        done(await send("DELETE", "/v1/throttle/allow", { network: one.network }), `${one.network} is not let through any more.`);
        await refresh();
      })),
    });
  }
  const held = table(heldColumns, (one) => `${one.rule} ${one.mode} ${one.account} ${one.client}`);
  const allowed = table(allowedColumns, (one) => one.network);
  const rules = table([
    { title: "Rule", cell: (one) => [name(one.rule), " ", mode(one)] },
    { title: "Delays from", class: "number", cell: (one) => h("span", {}, limit(one.delay_from)) },
    { title: "Refuses from", class: "number", cell: (one) => h("span", {}, limit(one.refuse_from)) },
    { title: "Half after", class: "number", cell: (one) => h("span", {}, duration(one.window)) },
    { title: "Delayed", class: "number", cell: (one) => h("span", {}, count(one.delayed)) },
    { title: "Refused", class: "number", cell: (one) => h("span", {}, count(one.refused)) },
    { title: "Would have", class: "number", cell: (one) => h("span", {}, count(one.would)) },
  ], (one) => one.rule);

  async function refresh() {
    const answer = await get("/v1/throttle");
    held.update(answer.held_off);
    held.element.hidden = answer.held_off.length === 0;
    none.replaceChildren(...(answer.held_off.length > 0 ? [] : [empty("Nobody has been held off lately.")]));
    allowed.update(answer.allowed);
    allowed.element.hidden = answer.allowed.length === 0;
    noneAllowed.replaceChildren(...(answer.allowed.length > 0 ? [] : [empty("No network is let through for some time.")]));
    rules.update(answer.rules);
    tiles.textContent = answer.waiting === 1 ? "1 login waits now." : `${count(answer.waiting)} logins wait now.`;
  }

  const plain = { autocomplete: "off", autocapitalize: "off", spellcheck: "false", required: true };
  const login = field("Login as the user types it", "input", { id: "throttle-login", ...plain });
  const ip = field("Client address", "input", { id: "throttle-ip", ...plain });
  const ask = h("button", { type: "submit", class: "main", id: "throttle-explain" }, "Explain");
  const result = h("div", { "aria-live": "polite" });
  const asks = async () => {
    result.replaceChildren();
    try {
      result.append(explained(await get("/v1/throttle/explain", { login: login.input.value.trim(), ip: ip.input.value.trim() })));
    } catch (error) {
      if (error instanceof TypeError) throw error;
      result.append(note(error.message, "bad"));
    }
  };
  const form = (work, go, ...parts) => h("form", {
    class: "card",
    submit: (event) => {
      event.preventDefault();
      attempt(() => busy(go, work));
    },
  }, parts, h("div", { class: "row end" }, go));

  root.append(said, tiles, h("h2", {}, "Held off"), none, held.element);
  if (mayChange) {
    const all = h("button", { type: "button", class: "danger", id: "clear-all", click: () => attempt(() => clear("of everybody", { all: true }, all)) }, "Forget all…");
    root.append(h("div", { class: "row end bar" }, all));
  }
  root.append(h("h2", {}, "Let through"), noneAllowed, allowed.element);
  if (mayChange) {
    const network = field("Address or network", "input", { id: "allow-network", placeholder: "192.0.2.0/24", ...plain });
    const lasts = field("For", "select", { id: "allow-time" }, TIMES.map(([seconds, text]) => h("option", { value: seconds }, text)));
    const reason = field("Reason, for the audit log", "input", { id: "allow-reason", autocomplete: "off", required: true });
    const go = h("button", { type: "submit", class: "main", id: "allow" }, "Let through");
    const allows = async () => {
      const body = { network: network.input.value.trim(), seconds: Number(lasts.input.value), reason: reason.input.value.trim() };
      done(await send("POST", "/v1/throttle/allow", body), `${body.network} is let through.`);
      network.input.value = reason.input.value = "";
      await refresh();
    };
    root.append(form(allows, go, h("div", { class: "row" }, network.box, lasts.box, reason.box)));
  }
  root.append(h("h2", {}, "What would become of a login"), form(asks, ask, h("div", { class: "row" }, login.box, ip.box)), result, h("h2", {}, "Rules"), rules.element);
  return { refresh, seconds: 5 };
}
