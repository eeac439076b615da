// What clients see of the names of a domain: the DNS, and the certificate that each node shows by each service.

import { days, h, name, note, others, pill, table, time, visible } from "./dom.js";

// The services, in the order of their columns.
const SERVICES = ["HTTPS", "IMAPS", "POP3S", "IMAP STARTTLS", "POP3 STLS"];

// Digits of a fingerprint by which people tell certificates apart.
const SHORT = 12;

const short = (fingerprint) => fingerprint.slice(0, SHORT);

// The answers of all nodes, each with the name of its node; without a name where it is the only one. A node without an
// answer, that has not failed either, does not know the name.
function answers(answer) {
  const here = { node: answer.node ?? "", ...answer, nodes: undefined };
  const nothing = { names: [], certificates: [], more: 0 };
  const answered = (answer.nodes ?? []).filter((each) => !each.error);
  const there = answered.map((each) => ({ ...nothing, ...each.answer, node: each.node }));
  return [here, ...there];
}

// The certificate that most listeners show for a name without fault; of two that as many show, the one that lasts longer.
function usual(rows, left) {
  const counts = new Map();
  for (const one of rows.flatMap((row) => row.found?.listeners ?? [])) {
    if (!one.problem && one.fingerprint) counts.set(one.fingerprint, (counts.get(one.fingerprint) ?? 0) + 1);
  }
  const sorted = [...counts].sort(([a, many], [b, more]) => more - many || left(b) - left(a));
  return sorted[0]?.[0];
}

// What the DNS says of a name.
function records(found) {
  const sub = (...content) => h("span", { class: "sub" }, content);
  const aliases = (found.aliases ?? []).map((each) => sub("alias of ", name(each)));
  if (found.more_records > 0) aliases.push(sub(`and ${found.more_records} more`));
  if (found.dns_problem) return [h("div", {}, pill("no address", "warn")), sub(name(found.dns_problem)), aliases];
  return [[...found.addresses].sort().map((each) => sub(name(each))), aliases];
}

// What a node shows by a service: a mark, and what is to be said of it.
function cell(one, row, left, isOnly) {
  const isUsual = one.fingerprint === row.usual;
  const mark = () => {
    if (!one.fingerprint) return pill("✗ none", "bad");
    if (one.problem) return pill("✗ wrong", "bad");
    if (!isUsual) return pill("≠ other", "warn");
    return pill(`✓ ${left(one.fingerprint)} days`, left(one.fingerprint) < 7 ? "warn" : "good");
  };
  const sub = (kind, ...content) => h("span", { class: `sub ${kind}` }, content);
  return h("div", { class: "seen", title: visible(`at ${one.listener}`) },
    mark(),
    one.problem ? sub("", name(one.problem)) : null,
    one.fingerprint && !isUsual ? sub("mono", short(one.fingerprint)) : null,
    isOnly && !one.problem ? null : sub("", "at ", name(one.listener)));
}

// On which nodes the authorities vouch for a certificate, and why not on the others.
function trust(probes, fingerprint) {
  const said = new Map();
  for (const probe of probes) {
    const one = probe.names.flatMap((each) => each.listeners).find((each) => each.fingerprint === fingerprint);
    if (one) said.set(one.untrusted ?? "", [...(said.get(one.untrusted ?? "") ?? []), probe.node || "this node"]);
  }
  return [...said].flatMap(([why, nodes]) => [why ? "; not known to the authorities of " : "; known to the authorities of ",
    name(nodes.join(", ")), why ? [": ", name(why)] : []]);
}

// All of it as an element.
export function seen(answer) {
  const probes = answers(answer);
  const certificates = new Map(probes.flatMap((probe) => probe.certificates).map((one) => [one.fingerprint, one]));
  const left = (fingerprint) => certificates.get(fingerprint)?.days_left ?? 0;
  const all = [...new Set(probes.flatMap((probe) => probe.names.map((one) => one.name)))].sort();
  const rows = all.flatMap((each) => {
    const here = probes.map((probe) => {
      const found = probe.names.find((one) => one.name === each);
      // A node that has more names than it looks at may have it, too.
      return { name: each, node: probe.node, found, leftOut: !found && probe.more > 0 };
    });
    const most = usual(here, left);
    return here.map((row) => ({ ...row, usual: most }));
  });
  const listeners = rows.flatMap((row) => row.found?.listeners ?? []);
  const services = SERVICES.filter((service) => listeners.some((one) => one.service === service));
  const several = probes.length > 1;
  const list = table([
    {
      title: "Name",
      class: "account",
      cell: (row) => [
        h("strong", {}, name(row.name)),
        row.found?.asked ? h("span", { class: "sub" }, "as ", name(row.found.asked)) : null,
        row.found ? records(row.found) : h("div", {}, row.leftOut ? pill("not looked at there", "warn") : pill("not known here", "bad")),
      ],
    },
    ...(several ? [{ title: "Node", class: "address", cell: (row) => name(row.node) }] : []),
    ...services.map((service) => ({
      title: service,
      cell: (row) => {
        const here = (row.found?.listeners ?? []).filter((one) => one.service === service);
        return here.map((one) => cell(one, row, left, here.length === 1));
      },
    })),
  ], (row) => `${row.name} ${row.node}`);
  list.update(rows);

  const unknown = rows.filter((row) => !row.found && !row.leftOut).length;
  const bad = listeners.filter((one) => one.problem).length + unknown;
  const differs = rows.some((row) => row.found?.listeners.some((one) => !one.problem && one.fingerprint !== row.usual));
  const silent = others(answer);
  const at = silent.length > 0 ? "at the nodes that have answered" : "everywhere";
  const blind = probes.filter((probe) => !probe.names.some((one) => one.listeners.length > 0));
  const more = Math.max(...probes.map((probe) => probe.more));
  function verdict() {
    if (bad > 0) return note(`${bad} of ${listeners.length + unknown} are not as they should be.`, "bad");
    if (listeners.length === 0) return note("No listener for web or mail clients has TLS.", "warn");
    if (blind.length > 0) return note(`No listener was looked at on ${blind.map((probe) => probe.node).join(", ")}: none for web or mail clients has TLS.`, "warn");
    if (more > 0) return note(`Only ${all.length} of ${all.length + more} names were looked at. Each of them is shown a certificate that is good for it.`, "warn");
    if (differs) return note("Every name is shown a certificate that is good for it, but not everywhere the same one.", "warn");
    return note(`Every name is shown its certificate ${at}.`, silent.length > 0 ? "warn" : "good");
  }
  const beyond = more > 0 ? [h("p", { class: "soft" }, `and ${more} more names, which were not looked at`)] : [];
  const shown = [...certificates.values()].map((one) => h("li", {},
    h("span", { class: "mono" }, short(one.fingerprint)), " ", days(one.days_left),
    h("span", { class: "sub" }, "for ", name(one.names.join(", "))),
    h("span", { class: "sub" }, "by ", name(one.issuer), trust(probes, one.fingerprint))));
  const heading = h("h3", {}, "What clients see, at ", time(new Date().toISOString()));
  return h("div", { class: "live" }, heading, verdict(), silent, list.element, beyond, shown.length > 0 ? h("ul", { class: "plain" }, shown) : null);
}
