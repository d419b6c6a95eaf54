"""`fula-fast attack`: the robust accuracy of a donor, or of every finished cell of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import attacks
from ..errors import FulaError
from ..files.paths import user_path
from .app import DeviceOption, EngineOption, ParentOption, WorkersOption, command

if TYPE_CHECKING:
    from ..progress import Progress
    from ..store import Store
    from ..study.spec import EngineSpec


@command("attack", resume="attacked cells of a run are kept: the same command goes on")
def attack(
    target: Annotated[
        str, typer.Argument(metavar="MODEL|RUN", help="A donor's checkpoint, or a sweep's folder.")
    ],
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="KEY=VALUE", help="A model's data: --data source=cifar10"),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="What another program's weights are for: --model resnet18"
        ),
    ] = None,
    model_option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Of --model: --model-option width=16"),
    ] = None,
    attack: Annotated[
        str,
        typer.Option(
            "--attack",
            help=f"{', '.join(attacks.names.valid_names())} (any number of steps). rand, standard "
            "and full are short for AutoAttack's; full hands FAB and Square to pyautoattack.",
        ),
    ] = attacks.names.DEFAULT,
    images: Annotated[
        int | None, typer.Option(min=1, help="Only the first so many test images.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Adversarial examples: a model's file (.npz), a run's folder of files."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Of a run's table, attack-NAME.csv; the attack's if unset.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            metavar="KEY=VALUE",
            help="Of the attack: --option eps=8/255, --option compaction=off",
        ),
    ] = None,
    device: DeviceOption = None,
    engine: EngineOption = None,
    workers: WorkersOption = None,
    since: Annotated[str | None, typer.Option(hidden=True)] = None,
    parent: ParentOption = None,
) -> None:
    """Measure the robust accuracy of a donor, or of every finished cell of a run."""
    from ..runs.alone import end_with
    from ..study.spec import EngineSpec, parse_table
    from .key_values import attack_options

    options = attack_options(option or ())
    table = {"device": device, "kind": engine, "workers": workers}
    where = parse_table(EngineSpec, {k: v for k, v in table.items() if v is not None}, "engine")
    if parent is not None:
        end_with(parent)
    if user_path(target).is_dir():
        if model or model_option:
            raise FulaError(
                f"'{target}' is the folder of a run, which names its models; drop --model"
            )
        if data:
            raise FulaError(
                f"'{target}' is the folder of a run, whose spec names its data; drop --data"
            )
        given = {"--attack": attack, "--name": name, "--images": images, "--out": out}
        print(_attack_run(target, given, option or (), options, where, since))
    else:
        if engine or workers:
            raise FulaError(f"'{target}' is one model, which one process attacks; drop --workers")
        built = (model, model_option or ())
        print(_attack_model(target, attack, name, data, images, out, where, options, built))


def _attack_run(
    folder: str,
    given: Mapping[str, Any],
    texts: Iterable[str],
    options: Mapping[str, Any],
    engine: EngineSpec,
    since: str | None,
) -> object:
    """`given`: what the command was given, by its options; `texts`: the attack's own."""
    from ..progress import open_progress
    from ..runs.attack import attack_run
    from ..study.resources import resources

    found = resources(engine)
    several = since is None and (engine.kind != "local" or found.workers > 1)
    with open_progress() as progress:
        words = [str(w) for name, v in given.items() if v is not None for w in (name, v)]
        words += [word for text in texts for word in ("--option", text)]
        command = ["attack", str(user_path(folder).absolute()), *words, "--workers", "1"]
        return attack_run(
            folder, given["--attack"], name=given["--name"], limit=given["--images"],
            examples=given["--out"], device=found.device, progress=progress, since=since,
            launch=_launcher(command, engine, progress) if several else None, **options,
        )  # fmt: skip


def _launcher(
    command: list[str], engine: EngineSpec, progress: Progress
) -> Callable[[Store], None]:
    from ..runs.engines import Launch, engine_of
    from ..study.resources import resources

    def launch(store: Store) -> None:
        engine_of(engine.kind)(Launch(store, resources(engine), engine, command=command), progress)

    return launch


def _attack_model(
    checkpoint: str, attack: str, name: str | None, data: list[str] | None, images: int | None,
    out: Path | None, engine: EngineSpec, options: dict[str, Any],
    built: tuple[str | None, Iterable[str]],
) -> str:  # fmt: skip
    if not data:
        raise FulaError(
            f"'{checkpoint}' is no folder of a run; for a model's checkpoint give its data too, "
            "for example --data source=cifar10"
        )
    if name is not None:
        raise FulaError("--name is of a run's table; drop it for a single model")
    from ..study.donor_spec import DataSpec
    from ..study.resources import resources
    from ..study.spec import parse_table
    from ..study.toml import apply_overrides

    table = parse_table(DataSpec, apply_overrides({}, data), "data")
    from ..attacks import attack_checkpoint
    from ..attacks.names import prepared
    from ..donors.obtain import normalisation_of, open_source

    prepared(attack, options)
    source = open_source(table)
    result = attack_checkpoint(
        checkpoint, source, attack, limit=images, output=out, into=_built(*built, source),
        normalisation=normalisation_of(table, source), device=resources(engine).device, **options,
    )  # fmt: skip
    vanished = result.zero_gradient_images
    return (
        f"{result.attack} on {len(result.robust)} images: clean accuracy "
        f"{result.clean_accuracy:.4f}, robust accuracy {result.robust_accuracy:.4f}"
        f"{f' ({vanished} images have a zero gradient)' if vanished else ''}"
    )


def _built(name: str | None, options: Iterable[str], source: Any) -> Any:
    """The model of --model for a source's images; None where the checkpoint describes its own."""
    from ..models import build
    from ..models.families import free_options
    from ..study.toml import parse_override

    given = free_options({parts[0]: value for parts, value in map(parse_override, options)})
    if name is None and given:
        raise FulaError("--model-option is of --model; give the model's name too")
    shape = {"num_classes": source.num_classes, "input_shape": source.image_shape}
    return None if name is None else build(name, **shape, **given)
