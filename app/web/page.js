// What the page does without its server: the slider, the strip of seeds, enlarged images, links, and keys.
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const visible = element => element && element.getClientRects().length > 0;
  const shown = selector => all(selector).find(visible);

  function choosePair(result, number) {
    const tiles = all(".tile[data-pair]", result);
    if (number < 0 || number >= tiles.length) return;
    all("[data-pair]", result).forEach(element => {
      const chosen = Number(element.dataset.pair) === number;
      if (element.classList.contains("tile")) element.setAttribute("aria-pressed", chosen);
      else element.hidden = !chosen;
    });
  }

  function stepPair(result, by) {
    const current = all(".tile[data-pair]", result).findIndex(tile => tile.getAttribute("aria-pressed") === "true");
    choosePair(result, current + by);
  }

  function enlarge(images, labels) {
    const dialog = document.createElement("dialog");
    dialog.className = "lightbox";
    dialog.setAttribute("aria-label", "enlarged images");
    images.forEach((image, i) => {
      const figure = document.createElement("figure"), copy = document.createElement("img"), caption = document.createElement("figcaption");
      copy.src = image.src;
      copy.alt = image.alt || labels[i];
      caption.textContent = labels[i];
      if (image.naturalWidth < 256) copy.classList.add("pixelated");
      figure.append(copy, caption);
      dialog.append(figure);
    });
    const close = document.createElement("button");
    close.type = "button";
    close.textContent = "Close";
    close.onclick = () => dialog.close();
    dialog.append(close);
    dialog.onclick = event => { if (event.target === dialog) dialog.close(); };
    dialog.onclose = () => dialog.remove();
    document.body.append(dialog);
    dialog.showModal();
  }

  async function copyLink(button, result) {
    const link = location.origin + location.pathname + "?" + result.dataset.link, text = button.textContent;
    try {
      await navigator.clipboard.writeText(link);
      button.textContent = "Copied";
    } catch {
      prompt("The link to this comparison:", link);
    }
    setTimeout(() => { button.textContent = text; }, 1500);
  }

  document.addEventListener("input", event => {
    if (event.target.matches(".wipe")) event.target.closest(".frame").style.setProperty("--x", event.target.value + "%");
  });

  document.addEventListener("click", event => {
    if (event.target.closest("#compare-edit, [data-do=open]")) window.scrollTo({top: 0, behavior: "smooth"});
    const head = event.target.closest(".sortable th");
    if (head) sortTable(head);
    const tile = event.target.closest(".tile[data-pair]"), button = event.target.closest("[data-act]");
    if (tile) choosePair(tile.closest(".result"), Number(tile.dataset.pair));
    if (!button) return;
    const result = button.closest(".result");
    if (button.dataset.act === "enlarge") enlarge(all(".view:not([hidden]) img", result).reverse(), ["before", "after"]);
    if (button.dataset.act === "enlarge-one") enlarge(all("img", button), [button.getAttribute("aria-label").replace("enlarge: ", "")]);
    if (button.dataset.act === "link") copyLink(button, result);
  });

  function sortTable(head) {
    const table = head.closest("table"), column = [...head.parentElement.children].indexOf(head);
    const up = head.getAttribute("aria-sort") === "descending", body = table.tBodies[0];
    const value = row => {
      const text = row.children[column].textContent.trim(), number = Number(text);
      return text === "" ? -Infinity : Number.isNaN(number) ? text.toLowerCase() : number;
    };
    const order = (a, b) => a === b ? 0 : (typeof a === typeof b ? a > b : typeof a === "string") ? 1 : -1;
    [...body.rows].sort((a, b) => order(value(a), value(b)) * (up ? 1 : -1)).forEach(row => body.append(row));
    all("th", table).forEach(other => other.setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
  }

  document.addEventListener("keydown", event => {
    if ((event.ctrlKey || event.metaKey) && event.key === "Enter") {
      const primary = ["#compare", "#erase", "#audit"].map(shown).find(Boolean);
      if (primary) { event.preventDefault(); primary.click(); }
    }
    const steps = {ArrowLeft: -1, ArrowRight: 1}, result = shown(".result .film");
    if (!(event.key in steps) || !result || event.target.closest("input, textarea, select, [contenteditable], [role=tab], [role=listbox]")) return;
    event.preventDefault();
    stepPair(result.closest(".result"), steps[event.key]);
  });

  // the options of a method as JSON, for the Erase button
  function readOptions() {
    const form = document.querySelector("#method-form .method-form");
    if (!form) return "{}";
    const value = field => field.type === "checkbox" ? field.checked : field.value;
    return JSON.stringify({method: form.dataset.method, ...Object.fromEntries(all("[name]", form).map(field => [field.name, value(field)]))});
  }
  window.eraseStudio = {readOptions};

  // what a visitor typed into the options comes back when the same recipe is shown again
  const typed = new Map(), recipeOf = form => form.dataset.recipe;
  const valueKey = field => field.type === "checkbox" ? "checked" : "value";
  document.addEventListener("change", event => {
    const form = event.target.closest(".method-form");
    if (!form || !event.target.name) return;
    typed.set(recipeOf(form), {...typed.get(recipeOf(form)), [event.target.name]: event.target[valueKey(event.target)]});
  });
  function bringBack(form) {
    form.dataset.filled = "yes";
    for (const [name, value] of Object.entries(typed.get(recipeOf(form)) || {})) {
      const field = form.querySelector(`[name="${name}"]`);
      if (field) field[valueKey(field)] = value;
    }
  }

  // the address follows what is shown, so that a reload and a copied address bring it back
  let link = "";
  new MutationObserver(() => {
    all(".method-form:not([data-filled])").forEach(bringBack);
    const result = document.querySelector("#result .result[data-link]");
    if (!result || result.dataset.link === link) return;
    link = result.dataset.link;
    history.replaceState(null, "", location.pathname + "?" + link);
  }).observe(document.documentElement, {childList: true, subtree: true});
})();
