(async () => {
  const places = [...document.querySelectorAll("[data-figure]")];
  try {
    const bytes = Uint8Array.from(atob(document.getElementById("plotly").textContent), c => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
    const figures = JSON.parse(document.getElementById("figures").textContent);
    const draw = async () => {
      const style = getComputedStyle(document.documentElement);
      const [ink, soft, line, paper] = ["--ink", "--soft", "--line", "--paper"].map(name => style.getPropertyValue(name).trim());
      for (const place of places) {
        await new Promise(requestAnimationFrame);  // the page can be read and scrolled meanwhile
        const { data, layout } = figures[place.dataset.figure];
        const axis = { gridcolor: line, linecolor: line, tickfont: { color: soft, size: 11 }, automargin: true };
        Plotly.react(place, data, {
          ...layout,
          annotations: (layout.annotations ?? []).map(note => ({ ...note, bgcolor: paper })),
          xaxis: { ...layout.xaxis, ...axis },
          yaxis: { ...layout.yaxis, ...axis },
          font: { color: ink, size: 12, family: getComputedStyle(document.body).fontFamily },
          paper_bgcolor: "transparent", plot_bgcolor: "transparent",
          hoverlabel: { bgcolor: paper, bordercolor: line, font: { color: ink } },
          margin: { l: 12, r: 12, t: 12, b: 48 },
        }, { responsive: true, displayModeBar: false });
      }
    };
    await draw();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  } catch (error) {
    for (const place of places) place.textContent = place.getAttribute("aria-label");
  }
})();
