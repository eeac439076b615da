// How the node is, and what somebody should look at.

import { get, send } from "./api.js";
import { busy, confirmed, count, days, duration, h, name, note, pill, table, time } from "./dom.js";

export const title = "Overview";

// How often certificates and domains are looked at, in milliseconds; there may be very many.
const SLOW = 60_000;
// Most concerns that are shown.
const SHOWN = 50;
// Most configurations that are shown.
const CONFIGURATIONS = 5;

function tile(what, ...value) {
  return h("div", { class: "tile" }, h("div", { class: "soft" }, what), h("div", { class: "big" }, value));
}

// What is wrong, or soon will be, with the view where more is to be seen.
function concerns(status, upstreams, certificates, domains) {
  const found = [];
  const add = (kind, view, ...text) => found.push({ kind, view, text });
  for (const reason of status.not_ready) add("bad", null, "Not ready: ", name(reason));
  const shared = status.shared_state;
  if (shared && !shared.joined) add("bad", null, "This node does not reach the others: ", name(shared.why ?? ""));
  for (const one of (shared?.nodes ?? []).filter((each) => each.silent !== null)) {
    add("bad", null, "Node ", name(one.node), ` has said nothing for ${duration(one.silent)}`);
  }
  const groups = new Map();
  for (const one of upstreams) groups.set(one.group, [...(groups.get(one.group) ?? []), one]);
  const isOut = (one) => one.health !== "up" || one.maintenance;
  const dead = [...groups].filter(([, servers]) => servers.every(isOut)).map(([group]) => group);
  // Without mailbox servers there is no mail. Whether anybody misses another group is for people to say: the table of
  // locations may have more than this site uses.
  if (dead.includes("mailbox")) add("bad", "upstreams", "No mailbox server answers");
  const others = dead.filter((group) => group !== "mailbox");
  if (others.length > 0) add("warn", "upstreams", "No server answers in ", others.length === 1 ? "this group: " : "these groups: ", name(others.join(", ")));
  for (const one of upstreams.filter((each) => isOut(each) && !dead.includes(each.group))) {
    const state = { unreachable: "does not answer", not_ready: "is not ready", up: "is in maintenance" };
    add("warn", "upstreams", "Server ", name(one.server), " in group ", name(one.group), ` ${state[one.health]}`);
  }
  for (const one of certificates) {
    if (one.days_left < 21) add(one.days_left < 7 ? "bad" : "warn", "certificates", "Certificate of ", name(one.used_for), " ", days(one.days_left));
  }
  for (const one of domains) {
    if (one.problem) add("bad", "domains", "The certificate of ", name(one.name), " cannot be used: ", name(one.problem));
    if (one.uncovered.length > 0) {
      const names = one.uncovered.slice(0, 5).join(", ");
      const more = one.uncovered.length > 5 ? ` and ${one.uncovered.length - 5} more` : "";
      add("warn", "domains", "No valid certificate for ", name(names + more), " of ", name(one.name));
    }
  }
  return found;
}

export function show(root, { mayChange, attempt, state }) {
  const tiles = h("div", { class: "tiles" });
  const protocols = table([
    { title: "Protocol", cell: (one) => h("strong", {}, one.proto.toUpperCase()) },
    { title: "Logged in", class: "number", cell: (one) => h("span", {}, count(one.logged_in)) },
    { title: "Not logged in", class: "number", cell: (one) => h("span", {}, count(one.others)) },
  ], (one) => one.proto);
  const nodes = table([
    { title: "Node", cell: (one) => h("span", {}, h("strong", {}, name(one.node)), one.this ? h("span", { class: "soft" }, " this one") : "") },
    { title: "State", cell: (one) => (one.silent === null ? pill(one.state, one.state === "ready" ? "good" : "warn") : pill("silent", "bad")) },
    { title: "Sessions", class: "number", cell: (one) => h("span", {}, count(one.sessions)) },
    { title: "Configuration", class: "number", cell: (one) => h("span", {}, `${one.generation}`) },
    { title: "Version", cell: (one) => h("span", {}, name(one.version)) },
    { title: "Since", cell: (one) => h("span", { class: "soft" }, time(one.since)) },
  ], (one) => `${one.node} ${one.pid} ${one.since}`);
  const list = h("div", { class: "card" });
  const changes = h("div", { class: "card" });
  const said = h("div");
  const drain = h("button", { type: "button" });
  let [looked, certificates, domains] = [0, null, null];

  async function refresh() {
    if (Date.now() - looked > SLOW) {
      [certificates, domains] = await Promise.all([get("/v1/certificates"), get("/v1/domains", { faulty: true, limit: SHOWN })]);
      looked = Date.now();
    }
    const [status, upstreams, history] = await Promise.all([get("/v1/status"), get("/v1/upstreams"), get("/v1/generations")]);
    tiles.replaceChildren(
      tile("State", pill(status.ready ? "in service" : "out of service", status.ready ? "good" : "bad")),
      tile("Configuration", `${status.generation}`),
      tile("Up for", duration(status.uptime)),
      tile("Connections", count(status.connections)),
      tile("Routes in memory", count(status.routes)),
      tile("Version", status.version),
    );
    protocols.update(status.sessions);
    nodes.update(status.shared_state?.nodes ?? []);
    nodes.element.hidden = !status.shared_state;
    const found = concerns(status, upstreams.upstreams, certificates.certificates, domains.domains);
    const items = found.slice(0, SHOWN).map(({ kind, view, text }) =>
      h("li", {}, pill(kind === "bad" ? "error" : "warning", kind), " ", text, " ", view && h("a", { href: `#${view}` }, "show")));
    const more = Math.max(found.length - SHOWN, 0) + domains.more;
    if (more > 0) items.push(h("li", {}, `and ${more} more`));
    const nothing = h("p", { class: "soft" }, "Nothing: all servers answer, no certificate expires soon, and every name has a valid one.");
    list.replaceChildren(h("h2", {}, "Needs attention"), items.length > 0 ? h("ul", { class: "plain" }, items) : nothing);
    const configurations = history.generations.slice(0, CONFIGURATIONS).map((one) =>
      h("li", {}, h("strong", {}, `${one.generation}`), " ", name(one.why), " ", h("span", { class: "soft" }, time(one.since)), one.changes.map((text) => h("span", { class: "sub" }, name(text)))));
    changes.replaceChildren(h("h2", {}, "Configurations"), h("ul", { class: "plain" }, configurations));
    const drained = status.not_ready.some((reason) => reason.includes("drained"));
    drain.textContent = drained ? "Put back in service" : "Take out of service…";
    drain.dataset.drained = drained;
  }

  drain.addEventListener("click", () => attempt(async () => {
    const drained = drain.dataset.drained === "true";
    const text = "Balancers send no new clients. Sessions go on, and clients that still connect are served.";
    if (!drained && !(await confirmed("Take this node out of service?", [text], "Take it out"))) return;
    await busy(drain, () => send(drained ? "DELETE" : "POST", "/v1/drain", {}));
    await refresh();
    await state();
  }));

  const reload = h("button", {
    type: "button",
    click: () => attempt(() => busy(reload, async () => {
      said.replaceChildren();
      try {
        const done = await send("POST", "/v1/reload", {});
        const changes = done.changes.length > 0 ? done.changes.join("\n") : "Nothing changed.";
        said.append(note(`Configuration ${done.generation} is in force.\n${changes}`, "good"));
        if (done.needs_upgrade.length > 0) said.append(note(`Needs an upgrade: ${done.needs_upgrade.join(", ")}`, "warn"));
        if (done.warnings.length > 0) said.append(note(done.warnings.join("\n"), "warn"));
      } catch (error) {
        said.append(note(error.message, "bad"));
      }
      looked = 0;
      await refresh();
    })),
  }, "Reload");

  root.append(tiles, list, nodes.element, protocols.element, changes);
  if (mayChange) {
    root.append(h("div", { class: "card" }, h("h2", {}, "This node"), said, h("div", { class: "row" }, reload, drain)));
  }
  return { refresh, seconds: 5 };
}
