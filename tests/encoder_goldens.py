"""Checkpoints of small encoders with weights from a seed, and what `transformers` makes of them.

`python tests/encoder_goldens.py` computes the numbers anew; it needs transformers and torch.
"""

import json
from pathlib import Path

import numpy as np

from dynexit.models.hf_folder import write_folder

FILE = Path(__file__).parent / "models" / "encoder_goldens.json"
ROWS = 2
SIZES = dict(hidden_size=8, num_hidden_layers=2, num_attention_heads=2)
IMAGES = dict(image_size=8, patch_size=4, num_channels=2, **SIZES)
TEXT = dict(vocab_size=20, max_position_embeddings=12, intermediate_size=16, **SIZES)
# name -> the class of transformers, its configuration, and height and width of the images
CASES = {
    "vit": ("ViTModel", IMAGES | dict(intermediate_size=16, image_size=[8, 12]), (8, 12)),
    "vit, classifier": (
        "ViTForImageClassification",
        IMAGES | dict(intermediate_size=16, qkv_bias=False, hidden_act="gelu_new"),
        (8, 8),
    ),
    "dinov2": ("Dinov2Model", IMAGES | dict(mlp_ratio=2), (8, 8)),
    "dinov2, other image": ("Dinov2Model", IMAGES | dict(mlp_ratio=2), (16, 12)),
    "dinov2, gated": (
        "Dinov2ForImageClassification",
        IMAGES | dict(mlp_ratio=2, use_swiglu_ffn=True),
        (8, 8),
    ),
    "bert": ("BertModel", TEXT, None),
    "bert, masked words": ("BertForMaskedLM", TEXT | dict(hidden_act="relu"), None),
    "albert": ("AlbertModel", TEXT | dict(embedding_size=4), None),
    "albert, groups": (
        "AlbertForSequenceClassification",
        TEXT | dict(embedding_size=4, num_hidden_groups=2, num_hidden_layers=3),
        None,
    ),
}


def weights(shapes):
    """Tensors by name, drawn in the order of the names."""
    rng = np.random.default_rng(0)
    return {n: (0.4 * rng.normal(size=shapes[n])).astype(np.float32) for n in sorted(shapes)}


def inputs(name):
    """Images `[B, H, W, C]`, or tokens, of which the last of row 1 are padding, and their types."""
    rng, image = np.random.default_rng(1), CASES[name][2]
    if image is not None:
        return rng.normal(size=(ROWS, *image, 2)).astype(np.float32)
    tokens, types = (
        rng.integers(low, n, (ROWS, 6)).astype(np.int32) for low, n in ((1, 20), (0, 2))
    )
    tokens[1, 4:] = 0
    return {"tokens": tokens, "types": types}


def goldens():
    """By case: "config", "shapes" of the tensors; "hidden" `[N, B, D]` of the first token after
    every block, and "last" `[B, L, D]` of all tokens after the last block and its norm.
    """
    return json.loads(FILE.read_text())


def write(folder, name, found):
    """The checkpoint of a case."""
    return write_folder(folder, found[name]["config"], weights(found[name]["shapes"]))


def of_transformers(folder, name):
    """`(hidden, last)`: the states after every block, and the last one with its norm."""
    import torch
    import transformers

    kind = getattr(transformers, CASES[name][0])
    model = kind.from_pretrained(folder).eval()
    model, x = getattr(model, model.base_model_prefix, model), inputs(name)
    if isinstance(x, dict):
        tokens, types = torch.tensor(x["tokens"]), torch.tensor(x["types"])
        given = dict(input_ids=tokens, token_type_ids=types, attention_mask=tokens != 0)
    else:
        given = dict(pixel_values=torch.tensor(x).permute(0, 3, 1, 2))
    with torch.no_grad():
        output = model(**given, output_hidden_states=True)
    states = [state.numpy() for state in output.hidden_states[1:]]
    return np.stack(states), output.last_hidden_state.numpy()


def main():
    """Writes `encoder_goldens.json`."""
    import tempfile

    import transformers
    from safetensors.numpy import load_file

    found = {}
    for name, (kind, config, _) in CASES.items():
        with tempfile.TemporaryDirectory() as place:
            made = getattr(transformers, kind)
            made(made.config_class(**config)).save_pretrained(place)
            shapes = {n: list(a.shape) for n, a in load_file(f"{place}/model.safetensors").items()}
            saved = json.loads((Path(place) / "config.json").read_text())
        found[name] = {"config": saved, "shapes": shapes}
        with tempfile.TemporaryDirectory() as place:
            hidden, last = of_transformers(write(f"{place}/m", name, found), name)
        for key, values in (("hidden", hidden[:, :, 0]), ("last", last)):
            found[name][key] = np.round(values.astype(np.float64), 5).tolist()
    FILE.write_text(json.dumps(found, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
