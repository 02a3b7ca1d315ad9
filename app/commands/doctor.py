"""`erasure doctor`: show what is installed, which device is used, what is missing and how to get it."""

import importlib.metadata
import importlib.util
import platform
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

CORE_PACKAGES = (
    "torch",
    "torchvision",
    "diffusers",
    "transformers",
    "accelerate",
    "peft",
    "safetensors",
    "open_clip_torch",
    "torchmetrics",
    "gradio",
    "tyro",
)
OPTIONAL_PACKAGES = {
    "xformers": "xformers attention on CUDA",
    "bitsandbytes": "--optimizer adam8bit",
    "matplotlib": "plots of the scripts",
    "tensorboard": "--report-to tensorboard",
    "wandb": "--report-to wandb",
    "trackio": "--report-to trackio",
}


@dataclass(frozen=True, kw_only=True)
class DoctorCommand:
    """Show what is installed, which device is used, and which judges and suites are ready. Nothing is downloaded."""

    words: ClassVar[str] = "doctor"


def run_doctor(command: DoctorCommand) -> int:
    """Print the report. Return 2 if a judge is broken."""
    from erasure.storage.run import cache_folder

    print(f"python        {platform.python_version()} ({sys.executable})")
    for name in CORE_PACKAGES:
        print(f"{name:<13} {package_version(name)}")
    print(f"device        {describe_device()}")
    print(f"cache         {cache_folder()} ({shutil.disk_usage(cache_folder().anchor or '/').free // 2**30} GiB free)")
    for name, use in OPTIONAL_PACKAGES.items():
        is_installed = importlib.util.find_spec(name) is not None
        print(f"{name:<13} {package_version(name) if is_installed else f'not installed ({use}): pip install {name}'}")
    code = check_judges()
    print_suites()
    return code


def package_version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "MISSING: pip install erasure-studio"


def describe_device() -> str:
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return f"cuda, {torch.cuda.get_device_name()}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    from erasure.families.precision import resolve_precision

    return (
        f"cpu, {torch.get_num_threads()} threads, computes in {str(resolve_precision('auto', torch.device('cpu'))).removeprefix('torch.')}"
    )


def check_judges() -> int:
    """Load every judge and print the reason where one fails. Return 2 if one is broken; an optional one without weights is not."""
    from erasure.config.registry import list_modules, load_class
    from erasure.errors import UserError
    from eval.judges.base import Judge, MissingWeights

    broken = 0
    for name in list_modules("eval.judges"):
        judge = load_class("eval.judges", name, Judge)
        try:
            identity = judge().identity()
        except (UserError, OSError) as error:
            is_optional = judge.optional and isinstance(error, MissingWeights)
            broken += not is_optional
            print(f"judge         {name} {'not ready (optional)' if is_optional else 'NOT ready'}: {error}")
            continue
        print(f"judge         {name} ready ({identity['weights'][:12]})")
    return 2 if broken else 0


def print_suites() -> None:
    """Print of every shipped suite whether its judges, with the fields that it gives them, are ready, and what is missing."""
    import eval
    from erasure.errors import UserError
    from eval.scoring.judge_scores import available_judges

    for name in eval.suite_names():
        suite = eval.load_suite(name)
        try:
            with without_network():
                missing = list(available_judges(suite)[1].values())
        except (UserError, OSError) as error:
            missing = [str(error)]
        judges = ", ".join(dict.fromkeys(spec.judge for spec in suite.judges.values()))
        state = f"not ready: {'; '.join(dict.fromkeys(reason.rstrip('.') for reason in missing))}" if missing else "ready"
        print(f"suite         {name} (judges: {judges}) {state}")


@contextmanager
def without_network() -> Iterator[None]:
    """Let the libraries look for files of the hub in the local cache only; they read the setting at every call."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
