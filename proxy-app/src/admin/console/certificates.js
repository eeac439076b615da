// The certificates that are shown to clients, the soonest to end first; before them what an authority has not issued.

import { get } from "./api.js";
import { days, empty, h, name, note, pill, table, time } from "./dom.js";

export const title = "Certificates";

// Most that are shown at once; those that end later can be found at their domains.
const SHOWN = 500;

// A domain whose order has failed, or one of whose names is left out.
function isFailing(order) {
  return Boolean(order.failed) || order.names.length > 0;
}

function state(order) {
  if (order.failed) return pill("no new certificate", "bad");
  if (order.names.length > 0) return pill("without some names", "warn");
  return order.renews ? pill("good", "good") : pill("none yet", "");
}

function reasons(order) {
  const again = (failed) => (failed.again ? h("span", { class: "sub" }, "tried again ", time(failed.again)) : null);
  const whole = order.failed ? [h("div", {}, name(order.failed.why), again(order.failed))] : [];
  return [...whole, ...order.names.map((one) => h("div", {}, name(one.name), ": ", name(one.why), again(one)))];
}

export function show(root) {
  const authority = h("div");
  const ordersTitle = h("h2", {}, "From the authority (ACME)");
  const orders = table([
    { title: "Domain", cell: (one) => h("strong", {}, name(one.domain)) },
    { title: "State", cell: state },
    { title: "Next renewal", cell: (one) => (one.renews ? time(one.renews) : null) },
    { title: "Why", cell: reasons },
  ], (one) => one.domain);
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
    const answer = await get("/v1/certificates");
    const { certificates } = answer;
    authority.replaceChildren(
      ...(answer.authority ? [note(`The authority cannot be used: ${answer.authority.why}`, "bad")] : []),
      ...(answer.ordered_by ? [h("p", { class: "soft" }, "Ordered by ", name(answer.ordered_by))] : []),
    );
    // What has failed comes first.
    const sorted = [...answer.orders].sort((one, other) => isFailing(other) - isFailing(one));
    orders.update(sorted.slice(0, SHOWN));
    orders.element.hidden = sorted.length === 0;
    ordersTitle.hidden = sorted.length === 0 && !answer.authority;
    list.update(certificates.slice(0, SHOWN));
    list.element.hidden = certificates.length === 0;
    none.replaceChildren(...(certificates.length > 0 ? [] : [empty("No certificate is in use: no listener uses TLS.")]));
    more.textContent = certificates.length > SHOWN ? `and ${certificates.length - SHOWN} more that expire later` : "";
  }

  root.append(ordersTitle, authority, orders.element, h("h2", {}, "In use"), none, list.element, more);
  return { refresh, seconds: 30 };
}
