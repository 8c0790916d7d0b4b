"""One explainer in a process of its own, for benchmarks/peers.py: asked and answering through its standard pipes.

    PYTHON benchmarks/peer_worker.py METHOD MODEL.onnx BUNDLE

It needs nothing of the project but for the project's own methods, so that a peer whose pins do not go with ours runs
under an interpreter of its own. Every line in is a JSON object (`window`: an .npz with `pixels` (H, W, 3) uint8 and
`tensor` (1, 3, H, W) as the network takes it; `target`; `map`: where to write the map), every line out one with
`seconds`, `passes` and `peak_mb`, the most memory this process has held so far.
"""

import json
import os
import sys
import time
import types
from importlib.metadata import version
from pathlib import Path

import numpy as np


def ours(name, model, bundle):
    from inspect_xai.explain.explainer import Explainer

    _, method, how = (*name.split(":"), "")[:3]
    options = {"mu": {"mu": 0.3}, "": {}}.get(how, {"profile": how})
    options = {"mu": 0.0} | options if method == "sise" else options
    explainer = Explainer(bundle, device="cpu", method=method, faithfulness=False, **options)
    explainer.engine.warm_up()

    def explain(pixels, tensor, target):
        found = explainer(pixels, target)
        return found.fused, found.rank, found.forward_passes

    return explain, f"inspect-xai, onnxruntime {version('onnxruntime-gpu')}"


def torch_peer(name, model, bundle):
    import torch
    from peer_network import read_network  # beside this file, where a script finds it

    network = read_network(model)
    shape = (1, 3, 224, 224)
    for _ in range(2):
        network(torch.zeros(shape))
    family, _, method = name.partition(":")
    explain, said = {"grad-cam": grad_cam, "torchcam": torch_cam, "captum": captum_occlusion}[family](
        torch, network, method
    )

    def counted(pixels, tensor, target):
        network.passes = 0
        found = explain(torch.from_numpy(tensor), target)
        return np.asarray(found, np.float32).reshape(shape[2:]), None, network.passes

    return counted, f"{said}, torch {torch.__version__}"


def grad_cam(torch, network, method):
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):  # names that its CAMs do not call stand in for it
        for module, names in {
            "torchvision": (),
            "torchvision.transforms": ("Compose", "Normalize", "ToTensor"),
            "torchvision.transforms.functional": ("resize",),
        }.items():
            sys.modules[module] = types.ModuleType(module)
            vars(sys.modules[module]).update(dict.fromkeys(names))
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    cam = getattr(pytorch_grad_cam, method)(model=network, target_layers=[network.tap])
    return (lambda tensor, target: cam(tensor, [ClassifierOutputTarget(target)])[0]), f"grad-cam {version('grad-cam')}"


def torch_cam(torch, network, method):
    import torchcam.methods

    cam = getattr(torchcam.methods, method)(network, network.tap)

    def explain(tensor, target):
        with torch.inference_mode():
            scores = network(tensor)
        (found,) = cam(target, scores)
        return torch.nn.functional.interpolate(found[None].float(), tensor.shape[2:], mode="bilinear")

    return explain, f"torchcam {version('torchcam')}"


def captum_occlusion(torch, network, method):
    from captum.attr import Occlusion

    occlusion = Occlusion(network)

    def explain(tensor, target):
        with torch.inference_mode():
            found = occlusion.attribute(tensor, (3, 32, 32), strides=(3, 16, 16), target=target)
        return found[0].mean(0)

    return explain, f"captum {version('captum')}"


def openvino_peer(name, model, bundle):
    import openvino
    from openvino_xai.methods import RISE, AISEClassification, ReciproCAM

    network = openvino.Core().read_model(model)
    counted = {"passes": 0}

    def softmax(said):
        counted["passes"] += 1
        logits = np.asarray(said[next(iter(said))])
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        return shifted / shifted.sum(axis=1, keepdims=True)

    method = name.partition(":")[2]
    if method == "ReciproCAM":
        explainer = ReciproCAM(network)
    else:
        network.reshape([1, 3, 224, 224])
        explainer = {"AISE": AISEClassification, "RISE": RISE}[method](network, softmax)
    explainer.model_forward(np.zeros((1, 3, 224, 224), np.float32))

    def explain(pixels, tensor, target):
        counted["passes"] = 0
        if method == "ReciproCAM":
            said = explainer.generate_saliency_map(tensor)
            return resized(np.asarray(said)[0, target], tensor.shape[2:]), None, 1
        more = {"num_masks": 4000} if method == "RISE" else {}
        said = explainer.generate_saliency_map(tensor, target_indices=[target], **more)
        return said[target], None, counted["passes"]

    return explain, f"openvino_xai {version('openvino_xai')}, openvino {version('openvino')} (its default precision)"


def resized(small, size):
    import cv2

    return cv2.resize(small.astype(np.float32), size[::-1], interpolation=cv2.INTER_LINEAR)


def dianna_peer(name, model, bundle):
    import dianna
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    counted = {"passes": 0}

    def run(pictures):
        counted["passes"] += len(pictures)
        logits = session.run(None, {session.get_inputs()[0].name: np.asarray(pictures, np.float32)})[0]
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        return shifted / shifted.sum(axis=1, keepdims=True)

    run(np.zeros((1, 3, 224, 224)))

    def explain(pixels, tensor, target):
        counted["passes"] = 0
        (found,) = dianna.explain_image(run, tensor[0], "RISE", labels=[target], axis_labels={0: "channels"})
        return found, None, counted["passes"]

    return explain, f"dianna {version('dianna')}, onnxruntime {onnxruntime.__version__}"


FAMILIES = {
    "grad-cam": torch_peer,
    "torchcam": torch_peer,
    "captum": torch_peer,
    "openvino_xai": openvino_peer,
    "dianna": dianna_peer,
    "inspect-xai": ours,
}


def peak_mb():
    """Return this program's peak memory; getrusage's ru_maxrss would begin at what the parent held."""
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (line,) = [line for line in status if line.startswith("VmHWM:")]
    return int(line.split()[1]) / 1024


def main():
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a peer prints is no answer
    name, model, bundle = sys.argv[1:]
    explain, made_of = FAMILIES[name.partition(":")[0]](name, model, bundle)
    for line in sys.stdin:
        asked = json.loads(line)
        with np.load(asked["window"]) as file:
            pixels, tensor = file["pixels"], file["tensor"]
        began = time.perf_counter()
        found, rank, passes = explain(pixels, tensor, asked["target"])
        seconds = time.perf_counter() - began
        order = np.argsort(-np.asarray(found).ravel(), kind="stable")
        place = np.empty(order.size, np.int32)
        place[order] = np.arange(order.size)
        rank = place.reshape(found.shape) if rank is None else rank
        np.savez(asked["map"], fused=np.maximum(np.asarray(found, np.float32), 0), rank=rank)
        said = {"seconds": seconds, "passes": passes, "peak_mb": peak_mb(), "made_of": made_of}
        answers.write(json.dumps(said) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
