"""openvino-xai's ReciproCAM of a toy, for test_parity.py; runs in an environment of its own (see there).

python openvino_recipro_cam.py FOLDER    reads toy.onnx and picture.npy, writes map.npy: (h, w), class 0
"""

import sys
from pathlib import Path

import numpy as np
import openvino
from openvino_xai.methods.white_box.recipro_cam import ReciproCAM

folder = Path(sys.argv[1])
model = openvino.Core().read_model(folder / "toy.onnx")
rectified = [node for node in model.get_ordered_ops() if node.get_type_name() == "Relu"]
maps_of_places = [node for node in rectified if len(node.get_output_partial_shape(0)) == 4]
explainer = ReciproCAM(model, target_layer=maps_of_places[-1].get_friendly_name(), embed_scaling=False)
maps = explainer.generate_saliency_map(np.load(folder / "picture.npy"), scale_output=False)
np.save(folder / "map.npy", np.asarray(maps)[0, 0])
