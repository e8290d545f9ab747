// Images side by side, through which the arrow keys leaf.
const SMALL = 128; // pixels up to which an image is drawn as sharp squares, as in the report
const markSmall = (image) => image.addEventListener("load", () =>
  image.classList.toggle("pixelated", Math.max(image.naturalWidth, image.naturalHeight) <= SMALL));
const encoded = (file) => file.split("/").map(encodeURIComponent).join("/");

// Where a file lies, seen from the page.
function addressOf(file) {
  if (file.startsWith("/")) return "file://" + encoded(file);
  const folder = DATA.folder === "." ? "" : encoded(DATA.folder) + "/";
  return (folder.startsWith("/") ? "file://" : "") + folder + encoded(file);
}

{
  const items = DATA.items;
  let current = 0;

  function best(shown, score) {
    const values = Object.values(shown).map((entry) => entry.scores[score.name]).filter((value) => value != null);
    return score.sign || new Set(values).size < 2 ? null : score.lower ? Math.min(...values) : Math.max(...values);
  }

  function figureOf(item, name, entry) {
    const image = element("img", { src: entry.source, alt: `${item.text}, by ${name}` });
    markSmall(image);
    const link = element("a", { href: addressOf(entry.file), target: "_blank", rel: "noopener" }, image);
    const scores = element("dl");
    for (const score of DATA.scores) {
      const value = entry.scores[score.name];
      if (value == null) continue;
      const winner = value === best(item.shown, score);
      scores.append(element("dt", {}, score.text + (score.sign ? " (sign)" : "")));
      scores.append(element("dd", winner ? { class: "best", title: "best of these" } : {}, (winner ? "▲ " : "") + readableNumber(value)));
    }
    return element("figure", {}, link, element("figcaption", {}, name), scores);
  }

  function show(index) {
    current = (index + items.length) % items.length;
    const item = items[current];
    const image = items.some((other) => other.image > 0) ? `, image ${item.image + 1}` : "";
    byId("prompt").textContent = item.text;
    byId("position").textContent = `${current + 1} of ${items.length}: prompt ${item.prompt + 1}${image}${item.group ? `, ${item.group}` : ""}`;
    byId("number").value = current + 1;
    byId("shots").replaceChildren(...Object.entries(item.shown).map(([name, entry]) => figureOf(item, name, entry)));
  }

  if (items.length) {
    byId("number").max = items.length;
    byId("previous").addEventListener("click", () => show(current - 1));
    byId("next").addEventListener("click", () => show(current + 1));
    byId("number").addEventListener("change", () => show(Math.min(items.length, Math.max(1, Number(byId("number").value) || 1)) - 1));
    addEventListener("keydown", (event) => {
      const elsewhere = event.target.closest?.("input, select, textarea, .wide") || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey;
      if (elsewhere || byId("images").hidden) return;
      if (event.key === "ArrowRight" || event.key === "ArrowLeft") {
        event.preventDefault();
        show(current + (event.key === "ArrowRight" ? 1 : -1));
      }
    });
    show(0);
  } else {
    byId("shots").replaceChildren(element("p", {}, "There are no images in this page."));
    byId("images").querySelector(".choices").hidden = true;
  }
}
