// Without this script, both images of a pair are visible, and everything else is there as well.
const images = document.getElementById("images");
if (images) {
  const slider = images.querySelector("input[type=range]");
  const frames = images.querySelectorAll(".frame");
  const wipeAll = () => frames.forEach((frame) => frame.style.setProperty("--after", slider.value + "%"));
  images.querySelector(".controls").hidden = false;
  slider.addEventListener("input", wipeAll);
  for (const button of images.querySelectorAll("[data-view]")) {
    button.addEventListener("click", () => {
      images.classList.toggle("wipe", button.dataset.view === "wipe");
      images.querySelectorAll("[data-view]").forEach((other) => other.setAttribute("aria-pressed", other === button));
    });
  }
  for (const frame of frames) {
    frame.addEventListener("pointermove", (event) => {
      const box = frame.getBoundingClientRect();
      const share = 1 - (event.clientX - box.left) / box.width;
      frame.style.setProperty("--after", 100 * Math.min(1, Math.max(0, share)) + "%");
    });
    frame.addEventListener("pointerleave", () => frame.style.setProperty("--after", slider.value + "%"));
  }
  addEventListener("beforeprint", () => images.querySelector("[data-view=sides]").click());
}
if (navigator.clipboard) {
  for (const step of document.querySelectorAll(".step")) {
    const button = step.appendChild(document.createElement("button"));
    button.type = "button";
    button.textContent = "Copy";
    button.setAttribute("aria-label", "Copy: " + step.querySelector("h3").textContent);
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(step.querySelector("code").textContent);
      button.textContent = "Copied";
    });
  }
}
