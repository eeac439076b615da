// Domains: their virtual host names and certificates, and what an administrator makes of them.

import { Refusal, get, send } from "./api.js";
import { busy, confirmed, days, empty, field, h, name, note, pill } from "./dom.js";
import { seen } from "./live.js";

export const title = "Domains";

// Most that are shown at once; the search finds the others.
const SHOWN = 50;
// What a request may hold; the rest of it is names and quotes.
const BODY_MAX = 64 * 1024;

// A preview that took too long, or failed by itself, does not keep an administrator from a change.
const UNFORESEEN = [408, 500];

// As the server judges it: two labels or more, the last one of letters; the first may be `*`.
const HOST = /^(\*\.)?([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+([a-z]{2,63}|xn--[a-z0-9-]{1,59})$/i;

// The blocks of a PEM text, each with its label.
function blocks(text) {
  const found = text.matchAll(/-----BEGIN ([A-Z0-9 ]+)-----[\s\S]*?-----END \1-----/g);
  return [...found].map(([pem, label]) => ({ label, pem: `${pem}\n` }));
}

function host(one, domain) {
  const notes = [];
  if (one.taken_by) notes.push(pill(`belongs to ${one.taken_by}`, "bad"));
  else if (!one.covered) notes.push(pill(one.shown === "default" ? "default certificate, not valid for it" : one.shown === "none" ? "no certificate" : "not covered", "warn"));
  else if (one.shown !== "own") notes.push(pill(one.shown === "default" ? "default certificate" : "another domain’s certificate"));
  return [name(one.name), notes];
}

function about(certificate) {
  if (!certificate) return h("p", { class: "soft" }, "No certificate of its own: clients get the default one.");
  const line = (what, ...value) => [h("dt", {}, what), h("dd", {}, value)];
  return h("dl", {},
    line("Expires", days(certificate.days_left), ` ${certificate.not_after}`),
    certificate.subject ? line("Subject", name(certificate.subject)) : null,
    line("Issuer", name(certificate.issuer)),
    line("Names", name(certificate.names.join(", "))),
    line("SHA-256", h("span", { class: "mono" }, certificate.fingerprint)));
}

// What an order of a certificate would be, in lines.
function planned(plan) {
  const at = (one) => (one.addresses?.length > 0 ? `, at ${one.addresses.join(" ")}` : "");
  const leads = (one) => (one.why ? `: ${one.why}` : one.leads_here ? ", which leads here" : "");
  const names = plan.names.map((one) => `for ${one.name}${at(one)}${leads(one)}`);
  const out = plan.left_out.map((one) => `not for ${one.name}: ${one.why}`);
  const answered = (one) => (one.answered_at.length > 0 ? `answered at ${one.answered_at.join(" ")}` : "in the DNS");
  const ways = plan.challenges.map((one) => `by ${one.kind}, ${one.why ?? answered(one)}`);
  return [`At ${plan.authority}:`, ...names, ...out, ...ways, ...(plan.why ? [`It would fail: ${plan.why}`] : [])];
}

// What has become of it, and whether that is good.
function ordered(answer) {
  const out = answer.left_out.map((one) => `Not for ${one.name}: ${one.why}`);
  const by = answer.node ? ` It was ordered by ${answer.node}.` : "";
  if (answer.state === "issued") return [[`The new certificate is in force.${by}`, ...out].join("\n"), out.length > 0 ? "warn" : "good"];
  if (answer.state === "failed") return [[`No new certificate: ${answer.why}`, ...out].join("\n"), "bad"];
  return [`The order is under way.${by}`, "warn"];
}

// Puts this into a place below the buttons of a card, and that place into view.
function put(place, content) {
  place.replaceChildren(content);
  place.scrollIntoView({ block: "nearest" });
}

// The card of a domain. What is being edited in it is lost only when it is saved or cancelled.
function card(domain, { mayChange, attempt }) {
  const element = h("section", { class: "card domain", "data-domain": domain.name, tabindex: -1 });
  const path = `/v1/domains/${encodeURIComponent(domain.name)}`;
  const said = h("div", { "aria-live": "polite" });
  const body = h("div");
  // What was seen live, until it is looked at again.
  const live = h("div", { "aria-live": "polite" });
  let wanted = domain.virtual_hosts.map((one) => one.name);

  // Shows what a change would do, and asks whether to make it. What the server would refuse is refused now.
  async function foreseen(button, proposal, title, yes) {
    let lines;
    try {
      const answer = await busy(button, () => send("POST", `${path}/preview`, proposal));
      lines = [...answer.preview.summary, ...answer.warnings];
    } catch (error) {
      if (!(error instanceof Refusal) || !UNFORESEEN.includes(error.status)) throw error;
      lines = [`What it would do is not known: ${error.message}`];
    }
    return confirmed(title, lines, yes);
  }

  // Does a change once its preview is confirmed, and shows what the server says of it, in full.
  async function change(button, method, where, order, done, [proposal, title, yes]) {
    said.replaceChildren();
    try {
      if (!(await foreseen(button, proposal, title, yes))) return false;
      const answer = await busy(button, () => send(method, path + where, order));
      domain = answer.domain;
      wanted = domain.virtual_hosts.map((one) => one.name);
      draw();
      live.replaceChildren();
      // What had the focus is gone.
      element.focus({ preventScroll: true });
      said.append(note(answer.in_force ? done : `${done} It is not in force on this node yet.`, answer.in_force ? "good" : "warn"));
      if (answer.warnings.length > 0) said.append(note(answer.warnings.join("\n"), "warn"));
      return true;
    } catch (error) {
      if (error instanceof TypeError) throw error;
      said.append(note(error.message, "bad"));
      return false;
    }
  }

  function names() {
    const before = domain.virtual_hosts.map((one) => one.name);
    const known = new Map(domain.virtual_hosts.map((one) => [one.name, one]));
    const list = h("ul", { class: "chips" });
    const wrong = h("div");
    const buttons = h("div", { class: "row end", hidden: true });
    const save = h("button", { type: "button", class: "main save", click: () => attempt(() => change(save, "PUT", "/virtual-hosts", { virtual_hosts: wanted, before }, "The virtual host names are stored and in force.", [{ names: { virtual_hosts: wanted, before } }, `Save the virtual host names of ${domain.name}?`, "Save them"])) }, "Save names");
    const cancel = h("button", { type: "button", click: () => { wanted = before; draw(); } }, "Cancel");
    buttons.append(cancel, save);

    function chips() {
      const shown = wanted.map((each) => {
        const one = known.get(each);
        const remove = mayChange && h("button", {
          type: "button",
          "aria-label": `Remove ${each}`,
          title: `Remove ${each}`,
          click: () => {
            wanted = wanted.filter((other) => other !== each);
            chips();
            input.input.focus();
          },
        }, "×");
        const kind = !one ? "new" : one.taken_by || !one.covered ? "warn" : "";
        return h("li", { class: `chip ${kind}` }, one ? host(one, domain.name) : [name(each), pill("new")], remove || null);
      });
      list.replaceChildren(...shown);
      if (wanted.length === 0) list.append(h("li", { class: "soft" }, "No virtual hosts yet."));
      const same = wanted.length === before.length && wanted.every((each) => before.includes(each));
      buttons.hidden = same;
      element.classList.toggle("unsaved", !same);
    }
    const input = field("New virtual host name", "input", { class: "new-host", placeholder: "mail.example.com", autocomplete: "off", autocapitalize: "off", spellcheck: "false", inputmode: "url" });
    const add = h("form", {
      class: "row",
      submit: (event) => {
        event.preventDefault();
        const each = input.input.value.trim().replace(/\.$/, "").toLowerCase();
        wrong.replaceChildren();
        if (!HOST.test(each) || each.length > 253) {
          wrong.append(note("Please enter a valid virtual host name, such as mail.example.com or *.example.com.", "bad"));
          return;
        }
        if (wanted.some((other) => other.toLowerCase() === each)) {
          wrong.append(note(`${each} is already in the list.`, "warn"));
          return;
        }
        wanted = [...wanted, each];
        input.input.value = "";
        chips();
      },
    }, input.box, h("button", { type: "submit" }, "Add +"));
    chips();
    const heading = h("h3", {}, "Virtual hosts");
    return mayChange ? [heading, list, add, wrong, buttons] : [heading, list];
  }

  function upload() {
    const area = (label, more) => field(label, "textarea", { autocomplete: "off", autocapitalize: "off", spellcheck: "false", placeholder: "-----BEGIN …", ...more });
    const certificate = area("Certificate", { class: "certificate", required: true });
    const chain = area("Chain, if not included above", { class: "chain" });
    const key = area("Private key, not encrypted", { class: "key secret" });
    const files = field("Files (PEM)", "input", { type: "file", class: "files", multiple: true, accept: ".pem,.crt,.cer,.key,.txt" });
    const read = h("div");
    // Whatever is in the files goes where it belongs.
    files.input.addEventListener("change", () => attempt(async () => {
      read.replaceChildren();
      const chosen = [...files.input.files];
      files.input.value = "";
      if (chosen.some((file) => file.size > BODY_MAX)) {
        read.append(note("A file is larger than 64 KiB, too large for a certificate with its chain.", "bad"));
        return;
      }
      const found = blocks((await Promise.all(chosen.map((file) => file.text()))).join("\n"));
      const of = (label) => found.filter((block) => block.label.endsWith(label)).map((block) => block.pem);
      const [keys, [leaf, ...rest]] = [of("PRIVATE KEY"), of("CERTIFICATE")];
      if (leaf) [certificate.input.value, chain.input.value] = [leaf, rest.join("")];
      if (keys.length > 0) key.input.value = keys[0];
      if (found.length === 0) read.append(note("No PEM text found. Convert certificates in other formats first.", "bad"));
      if (keys.length > 1) read.append(note("More than one private key found; the first is used.", "warn"));
    }));
    const store = h("button", { type: "submit", class: "main store" }, "Store certificate");
    const form = h("form", {
      submit: (event) => {
        event.preventDefault();
        const order = { certificate: certificate.input.value };
        if (chain.input.value.trim() !== "") order.chain = chain.input.value;
        if (key.input.value.trim() !== "") order.key = key.input.value;
        read.replaceChildren();
        if (new Blob([JSON.stringify(order)]).size > BODY_MAX) {
          read.append(note("Certificate, chain and key together are larger than 64 KiB.", "bad"));
          return;
        }
        attempt(() => change(store, "PUT", "/certificate", order, "The certificate is stored. The next handshake shows it.", [{ certificate: order }, `Store this certificate for ${domain.name}?`, "Store it"]));
      },
    },
      h("p", { class: "soft" }, "Without a key, the stored one is used. A stored key is never shown."),
      files.box, h("div", { class: "three" }, certificate.box, chain.box, key.box), read, h("div", { class: "row end" }, store));
    return h("details", {}, h("summary", {}, domain.certificate ? "Upload another certificate" : "Upload a certificate"), form);
  }

  // Shows what the authority would be asked for, and has it asked.
  async function order(button, renew) {
    said.replaceChildren();
    live.replaceChildren();
    const request = (dry) => busy(button, () => send("POST", "/v1/certificates/order", { name: domain.name, renew, dry_run: dry }));
    try {
      if (!(await confirmed(`Order a certificate for ${domain.name}?`, planned(await request(true)), "Order it"))) return;
      put(said, note("The certificate is being ordered. This takes up to 45 seconds; an order that takes longer goes on.", "info"));
      const answer = await request(false);
      const { domains } = await get("/v1/domains", { text: domain.name });
      domain = domains.find((one) => one.name === domain.name) ?? domain;
      if (!isUnsaved(element)) draw();
      put(said, note(...ordered(answer)));
    } catch (error) {
      said.replaceChildren();
      if (error instanceof TypeError) throw error;
      put(said, note(error.message, "bad"));
    }
  }

  // Shows what clients see of the names, on all nodes.
  async function look(button) {
    put(live, note("Every name is looked up, and asked for at every listener. This takes up to 20 seconds, and as long again while others look.", "info"));
    try {
      put(live, seen(await busy(button, () => get("/v1/certificates/probe", { name: domain.name }))));
    } catch (error) {
      live.replaceChildren();
      if (error instanceof TypeError) throw error;
      put(live, note(error.message, "bad"));
    }
  }

  function asked() {
    const renew = domain.certificate?.source === "acme";
    const check = h("button", { type: "button", class: "small check-live", click: () => attempt(() => look(check)) }, "Check live");
    const button = h("button", { type: "button", class: "small order", click: () => attempt(() => order(button, renew)) }, renew ? "Renew by ACME…" : "Get a certificate by ACME…");
    const buttons = [...(domain.virtual_hosts.length > 0 ? [check] : []), ...(mayChange ? [button] : [])];
    return buttons.length > 0 ? [h("div", { class: "row end" }, buttons)] : [];
  }

  function removal() {
    const remove = h("button", {
      type: "button",
      class: "small danger",
      click: () => attempt(() => change(remove, "DELETE", "/certificate", undefined, "The certificate has been removed.", [{ remove_certificate: true }, `Remove certificate and private key of ${domain.name}?`, "Remove them"])),
    }, "Remove certificate…");
    return h("div", { class: "row end" }, remove);
  }

  function draw() {
    const kinds = [];
    if (domain.alias_of) kinds.push(pill(`alias of ${domain.alias_of}`));
    if (domain.uncovered.length > 0) kinds.push(pill(`${domain.uncovered.length} not covered`, "warn"));
    if (domain.problem) kinds.push(pill("certificate cannot be used", "bad"));
    if (domain.certificate) kinds.push(days(domain.certificate.days_left));
    body.replaceChildren(
      h("div", { class: "row center" }, h("h2", {}, name(domain.name)), kinds),
      ...names(),
      h("h3", {}, "Certificate"),
      ...(domain.problem ? [note(`The certificate in the directory cannot be used: ${domain.problem}`, "bad")] : []),
      about(domain.certificate),
      ...asked(),
      ...(mayChange ? [upload()] : []),
      ...(mayChange && (domain.certificate || domain.problem) ? [removal()] : []),
    );
  }
  draw();
  element.append(body, said, live);
  return element;
}

// Whether somebody has begun to change something in a card.
function isUnsaved(element) {
  return element.classList.contains("unsaved") || [...element.querySelectorAll("textarea")].some((area) => area.value !== "");
}

export function show(root, context) {
  const search = field("Search", "input", { type: "search", id: "search", placeholder: "Domain or virtual host name", autocomplete: "off", spellcheck: "false" });
  const kept = h("p", { class: "soft" });
  const list = h("div");
  const again = h("button", { type: "button", click: () => context.attempt(refresh) }, "Refresh");

  async function refresh() {
    const text = search.input.value.trim();
    const answer = await get("/v1/domains", { text, limit: SHOWN });
    if (search.input.value.trim() !== text) return;
    kept.replaceChildren("Stored in ", name(answer.kept_in), ". Changes take effect with the next handshake and the next request.");
    // What is being changed stays as it is, found or not.
    const changing = new Map([...list.children].filter(isUnsaved).map((element) => [element.dataset.domain, element]));
    const found = answer.domains.map((domain) => changing.get(domain.name) ?? card(domain, context));
    const others = [...changing.values()].filter((element) => !found.includes(element));
    list.replaceChildren(...others, ...found);
    if (answer.domains.length === 0) list.append(empty(text === "" ? "There are no domains." : "No domain matches."));
    if (answer.more > 0) list.append(h("p", { class: "soft" }, `and ${answer.more} more; use the search`));
  }

  let typed = null;
  search.input.addEventListener("input", () => {
    clearTimeout(typed);
    typed = setTimeout(() => context.attempt(refresh), 250);
  });
  root.append(kept, h("div", { class: "row bar" }, search.box, again), list);
  // Not asked for again by itself: somebody may be typing.
  return { refresh, stop: () => clearTimeout(typed), unsaved: () => [...list.children].some(isUnsaved) };
}
