"""The parts of an HTML page, and records of evaluations to fill one with."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """The words of a page, the rows of its table, and the files that it would load."""

    VOID = {"meta", "img", "br", "link", "input"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.loads, self.words, self.rows = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.loads += [v for k, v in attrs if k in ("src", "href", "srcset", "data", "action")]
        if tag == "tr":
            self.rows.append((dict(attrs).get("class"), []))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data.strip())
        if "td" in self.open and data.strip():
            self.rows[-1][1].append(data.strip())

    @property
    def text(self) -> str:
        """All words that a reader sees."""
        return " ".join(word for word in self.words if word)


def record(step: int, scale: float | None, distance: float, **more) -> dict:
    """A record of an evaluation with this step, guidance scale and Fréchet distance."""
    return {
        "step": step,
        "cfg_scale": scale,
        "num_steps": 10,
        "solver": "dpmpp_2m",
        "amp": "no",
        "frechet_distance_clip": distance,
        "clip_score": 20 + (scale or 1) - distance / 100,
        "n": 256,
        "network": "clip-0123",
        "reference": "test",
        "seconds": 61.0,
        **more,
    }
