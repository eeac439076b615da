// Elements, made from data. All text goes in as text: names come from the network, and none of them becomes markup.

// Letters that draw nothing, or turn the direction of what follows, would let a name look like another one.
const HIDDEN = /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;

export function visible(text) {
  return String(text).replace(HIDDEN, "\u{fffd}");
}

// An element. Attributes that are null, undefined or false are left out; functions are listeners.
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

// A name from elsewhere, on its own in the direction of writing.
export function name(text) {
  return h("bdi", {}, visible(text));
}

export function pill(text, kind = "") {
  return h("span", { class: `pill ${kind}` }, visible(text));
}

// The same of several lines.
function visibleLines(text) {
  return text.split("\n").map(visible).join("\n");
}

export function note(text, kind) {
  return h("p", { class: `note ${kind}`, role: kind === "bad" ? "alert" : "status" }, visibleLines(text));
}

// What the other nodes have said that have not done it.
export function others(answer) {
  const silent = (answer.nodes ?? []).filter((node) => node.error);
  return silent.map((node) => note(`${node.node}: ${node.error}`, "bad"));
}

export function empty(text) {
  return h("p", { class: "card empty" }, text);
}

let labels = 0;

// A labelled input, select or textarea; gives both together.
export function field(label, tag, attributes = {}, ...children) {
  const id = attributes.id ?? `field-${++labels}`;
  const input = h(tag, { ...attributes, id }, ...children);
  return { input, box: h("div", { class: "grow" }, h("label", { for: id }, label), input) };
}

export function check(label, attributes = {}) {
  const input = h("input", { type: "checkbox", ...attributes });
  return { input, box: h("label", { class: "check" }, input, label) };
}

// A table whose rows stay the same elements while their keys do, so that nobody loses the focus when news come.
// Columns are {title, class, cell(item)}; a cell is drawn anew only when what `sees` of the item has changed.
export function table(columns, key) {
  const body = h("tbody");
  const head = columns.map((column) => h("th", { class: column.class, scope: "col" }, column.title));
  const element = h("div", { class: "table" }, h("table", {}, h("thead", {}, h("tr", {}, head)), body));
  const rows = new Map();

  function fill(row, item) {
    columns.forEach((column, at) => {
      const seen = JSON.stringify(column.sees ? column.sees(item) : item);
      if (row.seen[at] === seen) return;
      row.seen[at] = seen;
      const content = [column.cell(item)].flat(Infinity).filter((part) => part !== null && part !== undefined && part !== "");
      const cell = row.element.children[at];
      cell.classList.toggle("blank", content.length === 0);
      cell.replaceChildren(h("div", {}, content));
    });
  }

  function update(items) {
    const gone = new Set(rows.keys());
    let after = null;
    for (const item of items) {
      const id = key(item);
      gone.delete(id);
      let row = rows.get(id);
      if (!row) {
        const cells = columns.map((column) => h("td", { class: column.class, "data-label": column.title }));
        row = { element: h("tr", {}, cells), seen: [] };
        rows.set(id, row);
      }
      fill(row, item);
      const place = after ? after.nextSibling : body.firstChild;
      if (row.element !== place) body.insertBefore(row.element, place);
      after = row.element;
    }
    for (const id of gone) {
      rows.get(id).element.remove();
      rows.delete(id);
    }
  }
  return { element, update };
}

export function days(left) {
  const kind = left < 7 ? "bad" : left < 21 ? "warn" : "good";
  const text = left < 0 ? `expired ${-left} days ago` : left === 1 ? "1 day left" : `${left} days left`;
  return pill(text, kind);
}

export function duration(seconds) {
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86400)} d ${Math.floor((seconds % 86400) / 3600)} h`;
}

// A moment, in the time of who looks.
export function time(text) {
  const when = new Date(text);
  const shown = when.toLocaleTimeString(undefined, { hour12: false });
  const today = new Date().toDateString() === when.toDateString();
  return h("time", { datetime: text, title: text, class: "nowrap" }, today ? shown : `${when.toLocaleDateString()} ${shown}`);
}

export function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  while (count >= 1024 && at < units.length - 1) {
    count /= 1024;
    at += 1;
  }
  return `${at === 0 || count >= 100 ? Math.round(count) : count.toFixed(1)} ${units[at]}`;
}

export function count(number) {
  return Number(number).toLocaleString("en");
}

// Asks before something is done that cannot be taken back. The lines are ours: what comes from elsewhere makes none.
export function confirmed(title, lines, yes) {
  const dialog = document.getElementById("confirm");
  document.getElementById("confirm-title").textContent = visible(title);
  document.getElementById("confirm-text").textContent = lines.map(visible).join("\n");
  document.getElementById("confirm-yes").textContent = yes;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

// Does something at a button, which cannot be pressed again meanwhile.
export async function busy(button, work) {
  button.disabled = true;
  try {
    return await work();
  } finally {
    button.disabled = false;
  }
}
