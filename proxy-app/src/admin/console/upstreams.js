// The servers of all groups: their health, their share of the requests.

import { get, send } from "./api.js";
import { busy, count, empty, h, name, note, pill, table } from "./dom.js";

export const title = "Upstreams";

const HEALTH = { up: ["up", "good"], not_ready: ["not ready", "warn"], unreachable: ["unreachable", "bad"] };

function health(one) {
  const [text, kind] = HEALTH[one.health] ?? [one.health, ""];
  return [
    pill(text, kind),
    one.maintenance ? [" ", pill("maintenance", "warn")] : null,
    one.ejected !== null && one.ejected !== undefined ? h("span", { class: "sub" }, `ejected for ${one.ejected} s`) : null,
    one.why ? h("span", { class: "sub" }, name(one.why)) : null,
  ];
}

export function show(root, { mayChange, attempt }) {
  const said = h("div");
  const none = h("div");
  const path = (one) => `/v1/upstreams/${encodeURIComponent(one.group)}/${encodeURIComponent(one.server)}`;

  async function order(one, what) {
    await send("PUT", path(one), what);
    said.replaceChildren(note("In effect until the process ends.", "good"));
    await refresh();
  }

  // The weight as it is typed stays until it is sent.
  function weight(one) {
    const input = h("input", { type: "number", min: 0, max: 1000, value: one.weight, "aria-label": `Weight of ${one.server} in ${one.group}; 0: as configured`, class: "weight" });
    const set = h("button", { type: "submit", class: "small" }, "Set");
    return h("form", {
      class: "row center",
      submit: (event) => {
        event.preventDefault();
        attempt(() => busy(set, () => order(one, { weight: Number(input.value) })));
      },
    }, input, set);
  }

  function maintenance(one) {
    const button = h("button", {
      type: "button",
      class: "small",
      "aria-label": `${one.maintenance ? "End maintenance" : "Maintenance"} of ${one.server} in ${one.group}`,
      click: () => attempt(() => busy(button, () => order(one, { maintenance: !one.maintenance }))),
    }, one.maintenance ? "End maintenance" : "Maintenance");
    return button;
  }

  const columns = [
    { title: "Group", class: "group", sees: (one) => one.group, cell: (one) => name(one.group) },
    { title: "Server", class: "address", sees: (one) => [one.server, one.address], cell: (one) => [h("strong", {}, name(one.server)), h("span", { class: "sub" }, name(one.address))] },
    { title: "State", sees: (one) => [one.health, one.why, one.maintenance, one.ejected], cell: health },
    { title: "Busy", class: "number", sees: (one) => one.busy, cell: (one) => h("span", {}, count(one.busy)) },
    { title: "Requests", class: "number", sees: (one) => one.requests, cell: (one) => h("span", {}, count(one.requests)) },
    { title: "Weight", class: mayChange ? "" : "number", sees: (one) => one.weight, cell: (one) => (mayChange ? weight(one) : h("span", {}, `${one.weight}`)) },
  ];
  if (mayChange) columns.push({ title: "Change", class: "act", sees: (one) => one.maintenance, cell: maintenance });
  const list = table(columns, (one) => `${one.group} ${one.server} ${one.address}`);

  async function refresh() {
    const { upstreams } = await get("/v1/upstreams");
    list.update(upstreams);
    list.element.hidden = upstreams.length === 0;
    none.replaceChildren(...(upstreams.length > 0 ? [] : [empty("There are no groups of servers.")]));
  }

  const about = "Health and load of the servers, and their share of unauthenticated web requests. Requests of an account always go to its own server.";
  root.append(h("p", { class: "soft" }, about), said, none, list.element);
  return { refresh, seconds: 5 };
}
