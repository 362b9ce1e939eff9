"""A page for this model. The Hugging Face hub runs it if the folder is pushed as a Space.

On your machine: pip install -r requirements.txt gradio, then python app.py
"""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained(Path(__file__).parent, trust_remote_code=True)


def generate(prompt: str, number: float, seed: float) -> Iterator[list[str]]:
    """Yield the PNGs that are finished so far; each carries its sentence, seed and settings."""
    generation = pipe.faces().start(prompt, num=int(number), seed=int(seed))
    with TemporaryDirectory() as folder:
        for batch in generation.batches(batch_size=1):
            for image in batch:
                image.save(f"{folder}/{image.file_name}")
            yield [f"{folder}/{image.file_name}" for image in generation.results]


def page() -> Any:
    """Return the page, which is also an API: `gradio_client.Client(…).predict(…)`."""
    import gradio  # the hub installs it for a Space; `generate` works without it

    sentence = gradio.Textbox("a person with long red hair", label="Sentence")
    number = gradio.Slider(1, 16, 4, step=1, label="Images")
    seed = gradio.Number(0, label="Seed of the first image", precision=0, minimum=0)
    return gradio.Interface(
        generate,
        [sentence, number, seed],
        gradio.Gallery(label="Faces", format="png"),
        title="Faces from sentences",
        flagging_mode="never",
        delete_cache=(3600, 3600),  # seconds
        api_name="generate",
    )


if __name__ == "__main__":
    page().queue(max_size=20).launch(show_error=True)
