"""What the UNet in a checkpoint predicts, noise or v: by a .yaml beside it, its metadata, a marker tensor, or a sign in the weights."""

from pathlib import Path

from safetensors import safe_open

from erasure.config.strict_yaml import read_strict_yaml
from erasure.errors import AssumptionWarning, UserError
from erasure.loading.original_layout import UNET_PREFIX
from erasure.loading.safetensors_header import SafetensorsHeader

PREDICTION_KEY = "modelspec.prediction_type"  # of a file's metadata
PREDICTION_TYPES = {"epsilon": "epsilon", "eps": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}
V_MARKER, ZERO_SNR_MARKER = "v_pred", "ztsnr"  # empty tensors by which ComfyUI and others recognize SDXL models (comfy/supported_models.py)
EDM_MARKER = "edm_vpred.sigma_max"  # the same for a schedule of continuous noise levels, as in CosXL
# ComfyUI distinguishes the two kinds of Stable Diffusion 2 by the spread of this bias: above 0.09 means v (comfy/supported_models.py)
V_PREDICTION_BIAS, V_PREDICTION_SPREAD = f"{UNET_PREFIX}output_blocks.11.1.transformer_blocks.0.norm1.bias", 0.09
SCALINGS = {"EpsScaling": "epsilon", "VScaling": "v_prediction"}  # classes of Stability AI's sgm code, in sgm.modules.diffusionmodules


def find_prediction_type(header: SafetensorsHeader, source: str, generation: str) -> str:
    """Return what the UNet predicts, "epsilon" or "v_prediction".

    Args:
        generation: diffusers' name of the kind of checkpoint: "v1", "v2" or "xl_base". Only the weights of "v2" show a sign; the others
            predict noise where nothing says otherwise.

    Raises:
        UserError: a .yaml that cannot be read, or a prediction or schedule that no supported model has.
    """
    if EDM_MARKER in header.shapes:
        raise UserError(
            f"{source} holds {EDM_MARKER!r}, as CosXL does: it was trained on continuous noise levels, which DDIM does not represent. "
            "Use a model with the schedule of SDXL."
        )
    yaml_path = header.path.with_suffix(".yaml")
    if yaml_path.is_file():
        return _read_prediction_type(yaml_path)
    declared = header.metadata.get(PREDICTION_KEY) or header.metadata.get("modelspec.predict_key")
    if declared:
        if declared not in PREDICTION_TYPES:
            raise UserError(f"{source} says in its metadata that it predicts {declared!r}; allowed are {', '.join(PREDICTION_TYPES)}.")
        return PREDICTION_TYPES[declared]
    if V_MARKER in header.shapes:
        return "v_prediction"
    return _guess_from_weights(header, source) if generation == "v2" else "epsilon"


def _guess_from_weights(header: SafetensorsHeader, source: str) -> str:
    """Return what a Stable Diffusion 2 predicts by the rule of ComfyUI, with a warning."""
    with safe_open(header.path, "pt") as file:
        spread = file.get_tensor(V_PREDICTION_BIAS).float().std(correction=0).item() if V_PREDICTION_BIAS in header.shapes else 0.0
    prediction = "v_prediction" if spread > V_PREDICTION_SPREAD else "epsilon"
    AssumptionWarning.warn(
        f"{source} does not say what it predicts; taken for {prediction}, by the rule of ComfyUI (spread of one bias {spread:.3f}, "
        f"over {V_PREDICTION_SPREAD} means v). If that is wrong, put a .yaml beside it with "
        "`model: {params: {parameterization: v}}` or eps."
    )
    return prediction


def _read_prediction_type(path: Path) -> str:
    """Read the prediction type from a model's .yaml as A1111 and the original codes do.

    Stable Diffusion's code has model.params.parameterization, eps if missing; SDXL's has the class of a scaling in its denoiser_config.
    """
    record = read_strict_yaml(path)
    try:
        params = record["model"]["params"]
        declared = params.get("parameterization", "eps")
        scaling = params["denoiser_config"]["params"]["scaling_config"]["target"] if "denoiser_config" in params else None
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not the configuration of a model: it has no model.params, or no scaling in them.") from error
    if scaling is not None:
        if (name := str(scaling).rpartition(".")[2]) not in SCALINGS:
            raise UserError(f"{path}: the scaling of its denoiser is {name!r}; allowed are {' and '.join(SCALINGS)}.")
        return SCALINGS[name]
    if declared not in ("eps", "v"):
        raise UserError(f"{path}: parameterization is {declared!r}; allowed are eps and v.")
    return PREDICTION_TYPES[declared]
