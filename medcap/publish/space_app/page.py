"""The Gradio page of the Space and of `medcap demo`. Must not import medcap: a Space runs without it."""

from __future__ import annotations

import base64
import copy
import html
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

MAX_FILE = 100_000_000  # bytes of an upload
DELETE = (600, 3600)  # seconds: how often gradio deletes files, and how old these are at least
KEPT = "Uploaded files are deleted after 60 to 70 minutes, and when the program ends."
TITLE = "Describe a radiology image"
GUIDE = "Choose an image file and press the button. The model writes one caption, in a few seconds to a minute."
NOTICE = (
    "Research software. Not a medical device: do not use it for diagnosis, treatment, triage or any other decision "
    "about a patient. Captions can state the wrong organ, the wrong side or a finding that is not present. "
    "Do not upload images of patients."
)
MAX_FRAMES = 100_000  # of a call of the API; the page's slider ends at the last frame
FILE_WINDOW, OWN_WINDOW = "as in the file", "center and width below"
MODEL = {"concurrency_id": "model", "concurrency_limit": 1}  # one computation at a time
HIDDEN = {"api_visibility": "private", "show_progress": "hidden"}
CSS = """
.problem {color: var(--error-text-color, #b91c1c); font-weight: 600}
.pixels img {width: auto; height: 100%; object-fit: contain}
.similar {display: grid; grid-template-columns: repeat(auto-fill, minmax(9em, 1fr)); gap: 0.8em}
.similar figure {margin: 0} .similar img {width: 100%}
"""
IMAGE = {"interactive": False, "height": 280, "elem_classes": "pixels", "buttons": ["download", "fullscreen"]}
LAUNCH = {"max_file_size": MAX_FILE, "css": CSS, "footer_links": ["api"]}  # arguments of gradio's `launch`


@dataclass(frozen=True)
class App:
    """What a page shows and calls.

    Attributes:
        names: Description of the model.
        read: Opens a file as an RGB image; with `frames` it also takes a window (center, width) or None, and the
            number of a frame or None. Raises an exception for an unreadable file.
        resize: Returns an image in the size that the model receives.
        caption: Captions an RGB image with a number of beams and a maximum length in tokens.
        beams, length: Initial values.
        examples: Paths of example images by label.
        frames: Returns the number of frames of a DICOM file, and 0 for another file; None: DICOM is not read.
        windows: Center and width of windows by name, for DICOM.
        base_caption: As `caption`, without the adapter; shown beside it.
        similar: Returns the nearest training images with their captions.
        words: Returns the words of a caption that `occlude` explains.
        occlude: Draws how much the log-probability of word n of a caption depends on each part of the image.
    """

    names: str
    read: Callable[..., Image.Image]
    resize: Callable[[Image.Image], Image.Image]
    caption: Callable[[Image.Image, int, int], str]
    beams: int = 3
    length: int = 64
    examples: Mapping[str, str] = field(default_factory=dict)
    frames: Callable[[str], int] | None = None
    windows: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    base_caption: Callable[[Image.Image, int, int], str] | None = None
    similar: Callable[[Image.Image], list[tuple[Image.Image, str]]] | None = None
    words: Callable[[str], list[str]] | None = None
    occlude: Callable[[Image.Image, str, int], Image.Image] | None = None

    def view(self, path: str | None, window: Any = None, center: Any = 0, width: Any = 1, frame: Any = None) -> Any:
        """Return the image in a file and "", or None and what is wrong with it."""
        if path is None:
            return None, "Choose an image file first."
        try:
            if self.frames is None or not self.frames(path):
                return self.read(path), ""
            preset = self.windows.get(window, (center, width) if window == OWN_WINDOW else None)
            return self.read(path, preset, None if frame is None else int(frame)), ""
        except Exception as error:  # image decoders raise many types of errors
            if self.frames is None:
                return None, "This file cannot be read as an image."
            return None, str(error).replace(path, Path(path).name)

    def show(self, path: str | None, *view: Any) -> tuple[Image.Image | None, str]:
        """Return the image as the model receives it, and an error; both are empty without a file."""
        image, problem = self.view(path, *view) if path else (None, "")
        return image and self.resize(image), problem

    def answer(self, path: str | None, beams: float, length: float, *view: Any) -> tuple[Any, ...]:
        """Return the resized image, its caption and an error; then the base's caption and similar images, if any."""
        image, problem = self.view(path, *view)
        captions = []
        if image is not None:
            try:
                captions = [each(image, int(beams), int(length)) for each in (self.caption, self.base_caption) if each]
            except ValueError as error:  # settings that contradict those of the adapter
                problem = str(error)
        if image is None or problem:
            return None, "", problem, *[""] * (self.base_caption is not None), *[""] * (self.similar is not None)
        found = [] if self.similar is None else [figures(self.similar(image))]
        return self.resize(image), captions[0], "", *captions[1:], *found


def make_page(app: App) -> Any:
    """Return the Gradio Blocks. A new image, or another view of it, removes the results of the earlier one."""
    import gradio

    with gradio.Blocks(title=TITLE, analytics_enabled=False, delete_cache=DELETE) as blocks:
        gradio.HTML(heading(app.names))
        with gradio.Row():
            with gradio.Column():
                # gradio.Image gives no message for unreadable files
                file = gradio.File(label="Image file", type="filepath", height=150)
                view, show_view = _dicom(gradio, app, file)
                with gradio.Accordion("Settings", open=False):
                    beams = gradio.Slider(1, 10, app.beams, step=1, label="Beams", info="More are slower.")
                    length = gradio.Slider(4, 128, app.length, step=1, label="Maximum length in tokens")
                button = gradio.Button("Caption", variant="primary")
                if app.examples:
                    paths, labels = [[path] for path in app.examples.values()], list(app.examples)
                    gradio.Examples(paths, [file], label="Synthetic examples", example_labels=labels)
            with gradio.Column():
                image = gradio.Image(label="Image as the model receives it", format="png", **IMAGE)
                problem = gradio.HTML(label="Error", elem_classes="problem", padding=False)
                caption = gradio.Textbox(label="Caption", interactive=False, lines=2)
                others = _others(gradio, app)
        occlusion = _occlusion(gradio, app, image, caption) if app.occlude else []
        results = [image, caption, problem, *others]

        def describe(
            file: Any, beams: float, length: float, window: Any = FILE_WINDOW, center: Any = 40, width: Any = 400,
            frame: Any = 0,
        ) -> tuple[Any, ...]:  # fmt: skip
            """Its parameters are those of the API endpoint; a Space has the first three."""
            image, text, problem, *others = app.answer(file, beams, length, window, center, width, frame)
            return image, text, html.escape(problem), *others

        inputs = [file, beams, length, *view]
        asked = button.click(describe, inputs, results, api_name="caption", **MODEL)

        def clear(*given: Any) -> list[Any]:
            resized, error = app.show(*given)
            return [resized, "", html.escape(error), *[None] * len([*others, *occlusion])]

        for changed in (file.change, *show_view):
            outputs = [*results, *occlusion]
            changed(clear, [file, *view], outputs, cancels=[asked], queue=False, **HIDDEN)
            # again behind a computation that is running, whose results would otherwise appear with the new image
            changed(clear, [file, *view], outputs, **HIDDEN, **MODEL)
    return blocks


def _dicom(gradio: Any, app: App, file: Any) -> tuple[list[Any], list[Any]]:
    """Return the inputs for window and frame, shown for a DICOM file, and the events after which they apply."""
    if app.frames is None:
        return [], []
    with gradio.Accordion("DICOM: window and frame", visible=False) as panel:
        window = gradio.Dropdown([FILE_WINDOW, *app.windows, OWN_WINDOW], value=FILE_WINDOW, label="Window")
        center = gradio.Slider(-1000, 4000, 40, step=1, label="Center")
        width = gradio.Slider(1, 8000, 400, step=1, label="Width")
        frame = gradio.Slider(0, MAX_FRAMES, 0, step=1, label="Frame", visible=False)

    def fit(path: str | None) -> tuple[Any, ...]:
        n = app.frames(path) if path and app.frames else 0
        frames = gradio.update(value=n // 2, maximum=max(n - 1, 1), visible=n > 1)
        return gradio.update(visible=n > 0), frames, FILE_WINDOW

    file.change(fit, file, [panel, frame, window], queue=False, **HIDDEN)
    for slider in (center, width):
        slider.input(lambda: OWN_WINDOW, None, window, queue=False, **HIDDEN)
    window.input(lambda name: app.windows.get(name, (gradio.skip(), gradio.skip())), window, [center, width], **HIDDEN)
    return [window, center, width, frame], [window.input, center.release, width.release, frame.release]


def _others(gradio: Any, app: App) -> list[Any]:
    """Return the outputs for the base's caption and for similar images, those that the page has."""
    shown = []
    if app.base_caption is not None:
        shown.append(gradio.Textbox(label="Caption of the base without the adapter", interactive=False, lines=2))
    if app.similar is not None:
        shown.append(gradio.HTML(label="Similar"))
    return shown


def _occlusion(gradio: Any, app: App, image: Any, caption: Any) -> list[Any]:
    """Return the outputs of the occlusion map: the word that was chosen, and the map."""
    with gradio.Accordion("Which parts of the image a word depends on", open=False):
        gradio.HTML(
            "The image is covered with gray, one patch at a time. Red patches lower the log-probability of the word, "
            "blue ones raise it. The map shows what the prediction depends on, not whether the word is true."
        )
        word = gradio.Dropdown([], label="Word of the caption", interactive=True)
        button, shown = gradio.Button("Draw the map"), gradio.Image(label="Occlusion map", **IMAGE)

    def choices(text: str) -> Any:
        words = app.words(text) if app.words and text else []
        return gradio.update(choices=[(name, number) for number, name in enumerate(words)], value=None)

    def draw(pixels: Any, text: str, number: int | None) -> Image.Image | None:
        if app.occlude is None or pixels is None or number is None:
            return None
        return app.occlude(Image.fromarray(pixels), text, number)

    caption.change(choices, caption, word, **HIDDEN)
    button.click(draw, [image, caption, word], shown, api_visibility="private", **MODEL)
    return [word, shown]


def heading(names: str) -> str:
    """Return title, notice and model as HTML, with all names escaped."""
    parts = [f"<h1>{TITLE}</h1>", f"<p>{GUIDE}</p>", f"<p><b>{NOTICE}</b></p>", f"<p>{html.escape(names)} {KEPT}</p>"]
    return "".join(parts)


def figures(images: list[tuple[Image.Image, str]]) -> str:
    """Return images with their captions as HTML, with escaped text."""
    shown = []
    for image, text in images:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        shown.append(f'<figure><img src="{url}" alt=""><figcaption>{html.escape(text)}</figcaption></figure>')
    return f'<h3>Most similar training images</h3><div class="similar">{"".join(shown)}</div>'


def with_beams(settings: Any, beams: int, length: int) -> Any:
    """Return a copy of generation settings with other beams and length; settings of one beam lack those of several."""
    changed = copy.deepcopy(settings)
    changed.num_beams, changed.max_new_tokens = beams, length
    for name, default in (("length_penalty", 1.0), ("early_stopping", True)):
        given = getattr(changed, name)
        setattr(changed, name, (default if given is None else given) if beams > 1 else None)
    return changed


def resized(image: Image.Image, image_processor: Any) -> Image.Image:
    """Return an RGB image with the size and the filter of an image processor; unchanged if its size is not fixed."""
    size = dict(image_processor.size)
    if not (size.get("height") and size.get("width")):
        return image
    return image.resize((size["width"], size["height"]), image_processor.resample)
