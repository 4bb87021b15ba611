"""A web page to draw a digit on, with live predictions of a model."""

import base64
import io
import os

import gradio as gr
from PIL import Image

from experiments import images
from experiments.errors import ExperimentError
from experiments.serving import predict
from experiments.serving.classifier import Classifier

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported

_SYSTEM_FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # no download
_CANVAS = '<canvas width="400" height="400" aria-label="Draw here"></canvas><button class="lg secondary">Clear</button>'
_STYLE = """
canvas { width: 100%; max-width: 400px; border: 1px solid gray; touch-action: none; cursor: crosshair; display: block; }
button { margin-top: 8px; }
"""
_INPUT_STYLE = "width: 280px; max-width: 100%; margin: 24px auto 0; image-rendering: pixelated"
# Gradio's own canvas sends an image only at the end of a stroke. The pen is 26 of 400 pixels wide, because strokes in
# MNIST are 2 to 3 of 28.
_SCRIPT = """
const canvas = element.querySelector('canvas'), pen = canvas.getContext('2d');
Object.assign(pen, { lineWidth: 26, lineCap: 'round', lineJoin: 'round' });
const send = () => { props.value = canvas.toDataURL(); trigger('input'); };
const clear = () => { pen.fillStyle = 'white'; pen.fillRect(0, 0, canvas.width, canvas.height); };
const draw = (event) => {
  const { left, top, width, height } = canvas.getBoundingClientRect();
  pen.lineTo((event.clientX - left) * canvas.width / width, (event.clientY - top) * canvas.height / height);
  pen.stroke();
  send();
};
canvas.onpointerdown = (event) => {
  if (!event.isPrimary) return;  // a second finger
  canvas.setPointerCapture(event.pointerId);
  pen.beginPath();
  draw(event);  // where a line begins
  draw(event);  // a dot
};
canvas.onpointermove = (event) => { if (event.buttons && event.isPrimary) draw(event); };
element.querySelector('button').onclick = () => { clear(); send(); };
clear();
"""


def page(classifier: Classifier) -> gr.Blocks:
    """Builds the page: a canvas, the predicted probabilities, and the model input.

    Raises:
        ExperimentError: the model takes images that cannot be drawn.
    """
    like_mnist = classifier.image_shape == predict.MNIST_SHAPE and not classifier.reads_image_files
    prepare = predict.preparation(classifier, "mnist" if like_mnist else "resize")

    def predict_drawing(drawing: str) -> tuple[dict[str, float] | None, str]:
        image = Image.open(io.BytesIO(base64.b64decode(drawing.partition(",")[2])))
        try:
            pixels = prepare(image)
        except images.NotAnImage:  # nothing has been drawn yet
            return None, ""
        probabilities = classifier.predict(pixels[None])[0]
        html = f'<img alt="Model input" src="{images.data_uri(pixels)}" style="{_INPUT_STYLE}">'
        return dict(zip(classifier.class_names, map(float, probabilities), strict=True)), html

    with gr.Blocks(title=f"Draw for {classifier.name}") as blocks:
        gr.Markdown(f"## Draw a digit\nModel: {classifier.name}")
        with gr.Row():
            with gr.Column():
                canvas = gr.HTML(html_template=_CANVAS, css_template=_STYLE, js_on_load=_SCRIPT)
            with gr.Column():
                label = gr.Label(label="Prediction", num_top_classes=len(classifier.class_names))
            with gr.Column():
                model_input = gr.HTML(label="Model input", show_label=True, container=True, min_height=320)
        canvas.input(predict_drawing, canvas, [label, model_input], show_progress="hidden", trigger_mode="always_last")
    return blocks


def serve(classifier: Classifier, port: int) -> None:
    """Serves the page on 127.0.0.1 until Ctrl-C.

    Raises:
        ExperimentError: the port is in use.
    """
    blocks = page(classifier)
    theme = gr.themes.Default(**_SYSTEM_FONTS)
    try:
        blocks.launch(server_name="127.0.0.1", server_port=port, quiet=True, theme=theme, prevent_thread_lock=True)
    except OSError as error:
        raise ExperimentError(f"Port {port} is in use.", advice=f"Try --port {port + 1}.") from error
    print(f"Draw at http://127.0.0.1:{port}/\nStop with Ctrl-C.", flush=True)
    blocks.block_thread()
