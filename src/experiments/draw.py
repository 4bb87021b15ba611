"""A page on which a digit is drawn, and a model says after every stroke what it is."""

import os
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported

import gradio as gr
import numpy as np
from PIL import Image

from experiments import images, predict
from experiments.errors import ExperimentError
from experiments.inference import Classifier

_CANVAS = 400  # pixels
_BRUSH = 26  # a stroke of MNIST is 2 to 3 pixels of 28 wide
_SHOWN = 280  # pixels, of what the net sees
_SYSTEM_FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # no download


def page(classifier: Classifier) -> gr.Blocks:
    """A canvas, the probabilities, and the pixels that the net sees.

    Raises:
        ExperimentError: the model takes images that cannot be drawn so.
    """
    prepare = predict.preparation(classifier, None)
    paper = np.full((_CANVAS, _CANVAS, 3), 255, np.uint8)

    def answer(drawing: dict[str, Any]) -> tuple[dict[str, float] | None, np.ndarray | None]:
        if drawing["composite"] is None:
            return None, None
        try:
            pixels = prepare(images.opaque(drawing["composite"]))
        except images.NotAnImage:  # nothing is drawn yet
            return None, None
        said = classifier.predict(pixels[None])[0]
        seen = Image.fromarray(pixels.squeeze()).resize((_SHOWN, _SHOWN), Image.Resampling.NEAREST)
        return dict(zip(classifier.class_names, map(float, said), strict=True)), np.asarray(seen)

    with gr.Blocks(title=f"Draw for {classifier.name}") as blocks:
        gr.Markdown(f"## Draw a digit\nModel: {classifier.name}")
        with gr.Row():
            with gr.Column(min_width=_CANVAS + 160):
                canvas = gr.Sketchpad(
                    value={"background": paper, "layers": [], "composite": None},  # so that the brush is in one's hand
                    type="pil",
                    label="Draw here",
                    canvas_size=(_CANVAS, _CANVAS),
                    fixed_canvas=True,
                    layers=False,
                    transforms=(),
                    brush=gr.Brush(default_size=_BRUSH, colors=["#000000"], color_mode="fixed"),
                )
            with gr.Column():
                said = gr.Label(label="It says", num_top_classes=len(classifier.class_names))
                seen = gr.Image(label="It sees", interactive=False, height=_SHOWN, width=_SHOWN, buttons=[])
        canvas.change(answer, canvas, [said, seen], show_progress="hidden", trigger_mode="always_last")
    return blocks


def serve(classifier: Classifier, port: int) -> None:
    """Shows the page on 127.0.0.1 until Ctrl-C.

    Raises:
        ExperimentError: the port is taken.
    """
    blocks = page(classifier)
    theme = gr.themes.Default(**_SYSTEM_FONTS)
    try:
        blocks.launch(server_name="127.0.0.1", server_port=port, quiet=True, theme=theme, prevent_thread_lock=True)
    except OSError as error:
        raise ExperimentError(f"Port {port} of 127.0.0.1 is taken.", advice=f"Try: --port {port + 1}") from error
    print(f"Draw at http://127.0.0.1:{port}/\nStop with Ctrl-C.", flush=True)
    blocks.block_thread()
