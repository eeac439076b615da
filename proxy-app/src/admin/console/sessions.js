// Who is connected now; ends sessions.

import { get, send } from "./api.js";
import { bytes, confirmed, count, duration, empty, field, h, name, note, pill, table } from "./dom.js";

export const title = "Sessions";

// Most that are shown at once; the filter finds the others.
const SHOWN = 300;

function who(one) {
  if (one.logins.length === 0) return h("span", { class: "soft" }, "not logged in");
  return one.logins.map((login) => {
    const typed = login.user !== "" && login.user !== login.account ? h("span", { class: "sub" }, "as ", name(login.user)) : null;
    return h("div", {}, name(login.account || login.user), typed);
  });
}

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
  const none = h("div");
  const columns = [
    { title: "Account", class: "account", sees: (one) => one.logins, cell: who },
    { title: "Protocol", sees: (one) => [one.proto, one.tls], cell: (one) => [pill(one.proto.toUpperCase()), one.tls ? null : h("span", { class: "sub" }, "clear text or STARTTLS")] },
    { title: "Client", class: "address", sees: (one) => one.client, cell: (one) => [name(one.client), one.via ? h("span", { class: "sub" }, "via ", name(one.via)) : null] },
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
      sees: (one) => one.session,
      cell: (one) => h("button", { type: "button", class: "small danger", "aria-label": `End session ${one.session}`, click: () => attempt(() => kick(one)) }, "End…"),
    });
  }
  const list = table(columns, (one) => one.session);
  let now = new Map();

  async function refresh() {
    const text = filter.input.value.trim();
    const answer = await get("/v1/sessions", { text, limit: SHOWN, local: true });
    if (filter.input.value.trim() !== text) return;
    now = new Map(answer.sessions.map((one) => [one.session, one]));
    list.update(answer.sessions.toReversed());
    list.element.hidden = answer.sessions.length === 0;
    none.replaceChildren(...(answer.sessions.length > 0 ? [] : [empty(text === "" ? "No sessions." : "No session matches.")]));
    const all = answer.sessions.length + answer.more;
    total.textContent = answer.more > 0 ? `the newest ${SHOWN} of ${count(all)}` : `${count(all)} session${all === 1 ? "" : "s"}`;
  }

  async function kick(seen) {
    const one = now.get(seen.session) ?? seen;
    const account = one.logins[0]?.account || one.logins[0]?.user || one.client;
    const text = `${one.proto.toUpperCase()} from ${one.client}. It ends now; the client may reconnect at once.`;
    if (!(await confirmed(`End the session of ${account}?`, text, "End it"))) return;
    const { sessions } = await send("POST", "/v1/sessions/kick?local=true", { session: one.session });
    const done = sessions.length === 0 ? "It had already ended." : `The session of ${account} ends.`;
    said.replaceChildren(note(done, "good"));
    await refresh();
  }

  let typed = null;
  filter.input.addEventListener("input", () => {
    clearTimeout(typed);
    typed = setTimeout(() => attempt(refresh), 200);
  });
  root.append(h("div", { class: "row bar" }, filter.box, total), said, none, list.element);
  return { refresh, seconds: 4, stop: () => clearTimeout(typed) };
}
