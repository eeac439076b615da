// The certificates that are shown to clients, the soonest to end first.

import { get } from "./api.js";
import { days, empty, h, name, table } from "./dom.js";

export const title = "Certificates";

// Most that are shown at once; those that end later can be found at their domains.
const SHOWN = 500;

export function show(root) {
  const none = h("div");
  const more = h("p", { class: "soft" });
  const list = table([
    { title: "Used for", cell: (one) => h("strong", {}, name(one.used_for)) },
    { title: "Expires", cell: (one) => [days(one.days_left), h("span", { class: "sub" }, one.not_after)] },
    { title: "Names", class: "account", cell: (one) => one.names.map((each) => h("div", {}, name(each))) },
    { title: "Subject and issuer", cell: (one) => [name(one.subject), h("span", { class: "sub" }, "by ", name(one.issuer))] },
    { title: "SHA-256", cell: (one) => h("span", { class: "mono soft" }, one.fingerprint) },
  ], (one) => one.used_for);

  async function refresh() {
    const { certificates } = await get("/v1/certificates");
    list.update(certificates.slice(0, SHOWN));
    list.element.hidden = certificates.length === 0;
    none.replaceChildren(...(certificates.length > 0 ? [] : [empty("No certificate is in use: no listener uses TLS.")]));
    more.textContent = certificates.length > SHOWN ? `and ${certificates.length - SHOWN} more that expire later` : "";
  }

  root.append(none, list.element, more);
  return { refresh, seconds: 30 };
}
