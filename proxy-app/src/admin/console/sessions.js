// Who is connected now, on all nodes; ends sessions.

import { get, send } from "./api.js";
import { bytes, confirmed, count, duration, empty, field, h, name, note, others, pill, table } from "./dom.js";

export const title = "Sessions";

// Most of each node that are shown at once; the filter finds the others.
const SHOWN = 300;

function who(one) {
  if (one.logins.length === 0) return h("span", { class: "soft" }, "not logged in");
  return one.logins.map((login) => {
    const typed = login.user !== "" && login.user !== login.account ? h("span", { class: "sub" }, "as ", name(login.user)) : null;
    return h("div", {}, name(login.account || login.user), typed);
  });
}

// The sessions of all nodes that have answered, the youngest first. Without other nodes they have no node.
function together(answer) {
  const at = (node, list) => list.sessions.map((one) => ({ ...one, node }));
  const answered = (answer.nodes ?? []).filter((other) => other.answer);
  const all = [...at(answer.node ?? "", answer), ...answered.flatMap((other) => at(other.node, other.answer))];
  const more = answered.reduce((sum, other) => sum + (other.answer.more ?? 0), answer.more);
  return { all: all.sort((one, other) => one.age - other.age), more };
}

const key = (one) => `${one.node} ${one.session}`;

export function show(root, { mayChange, attempt }) {
  const filter = field("Filter", "input", {
    type: "search",
    id: "filter",
    placeholder: "User, address, server or protocol",
    autocomplete: "off",
    spellcheck: "false",
  });
  const total = h("span", { class: "soft push" });
  const said = h("div");
  const silent = h("div");
  const none = h("div");
  const columns = [
    { title: "Account", class: "account", sees: (one) => one.logins, cell: who },
    { title: "Protocol", sees: (one) => [one.proto, one.tls], cell: (one) => [pill(one.proto.toUpperCase()), one.tls ? null : h("span", { class: "sub" }, "clear text or STARTTLS")] },
    { title: "Client", class: "address", sees: (one) => [one.client, one.node], cell: (one) => [name(one.client), one.via ? h("span", { class: "sub" }, "via ", name(one.via)) : null, one.node === "" ? null : h("span", { class: "sub" }, "at ", name(one.node))] },
    { title: "Server", class: "address", sees: (one) => one.logins, cell: (one) => [...new Set(one.logins.map((login) => login.route))].filter((route) => route !== "").map((route) => h("div", {}, name(route))) },
    { title: "Age", class: "number", sees: (one) => duration(one.age), cell: (one) => h("span", { title: one.since }, duration(one.age)) },
    { title: "Idle", class: "number", sees: (one) => duration(one.idle), cell: (one) => h("span", {}, duration(one.idle)) },
    { title: "In", class: "number", sees: (one) => one.bytes_in, cell: (one) => h("span", {}, bytes(one.bytes_in)) },
    { title: "Out", class: "number", sees: (one) => one.bytes_out, cell: (one) => h("span", {}, bytes(one.bytes_out)) },
  ];
  if (mayChange) {
    columns.push({
      title: "End",
      class: "act",
      sees: key,
      cell: (one) => h("button", { type: "button", class: "small danger", "aria-label": `End session ${one.session}`, click: () => attempt(() => kick(one)) }, "End…"),
    });
  }
  const list = table(columns, key);
  let now = new Map();

  async function refresh() {
    const text = filter.input.value.trim();
    const answer = await get("/v1/sessions", { text, limit: SHOWN });
    if (filter.input.value.trim() !== text) return;
    const { all, more } = together(answer);
    const nodes = (answer.nodes ?? []).length;
    now = new Map(all.map((one) => [key(one), one]));
    list.update(all);
    list.element.hidden = all.length === 0;
    silent.replaceChildren(...others(answer));
    none.replaceChildren(...(all.length > 0 ? [] : [empty(text === "" ? "No sessions." : "No session matches.")]));
    const found = all.length + more;
    const where = nodes > 0 ? ` on ${nodes + 1} nodes` : "";
    total.textContent = more > 0 ? `the newest ${count(all.length)} of ${count(found)}${where}` : `${count(found)} session${found === 1 ? "" : "s"}${where}`;
  }

  async function kick(seen) {
    const one = now.get(key(seen)) ?? seen;
    const account = one.logins[0]?.account || one.logins[0]?.user || one.client;
    const where = one.node === "" ? "" : ` on ${one.node}`;
    const text = `${one.proto.toUpperCase()} from ${one.client}${where}. It ends now; the client may reconnect at once.`;
    if (!(await confirmed(`End the session of ${account}?`, [text], "End it"))) return;
    const { sessions } = await send("POST", `/v1/sessions/kick?${one.node === "" ? "local=true" : new URLSearchParams({ node: one.node })}`, { session: one.session });
    const done = sessions.length === 0 ? "It had already ended." : `The session of ${account} ends.`;
    said.replaceChildren(note(done, "good"));
    await refresh();
  }

  let typed = null;
  filter.input.addEventListener("input", () => {
    clearTimeout(typed);
    typed = setTimeout(() => attempt(refresh), 200);
  });
  root.append(h("div", { class: "row bar" }, filter.box, total), said, silent, none, list.element);
  return { refresh, seconds: 4, stop: () => clearTimeout(typed) };
}
