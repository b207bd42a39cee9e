"""The commands about signing: sign, keys. They turn flags into a line or two."""

import datetime
import json
from pathlib import Path
from typing import Any

import click

from pipeline.cli.exit_codes import told
from pipeline.cli.terminal import print_line

__all__ = ["keys", "sign"]

KEYS = click.option(
    "--keys",
    "folder",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="[default: $COMPRESS_KEYS_DIR, ~/.config/compress/keys]",
)
JSON = click.option("--json", "as_json", is_flag=True, help="JSON on stdout, all else on stderr.")


@click.command(short_help="Sign an artifact, so that devices can be given it.")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--name", metavar="NAME", help="What is shipped; versions count per name.  [default: the network's]")
@click.option(
    "--version", type=click.IntRange(1, 2**53 - 1), metavar="N", help="Devices refuse one older than theirs.  [default: the time]"
)
@click.option(
    "--device", "devices", multiple=True, metavar="GLOB", help="Repeatable.  [default: the one of the artifact's profile]"
)
@click.option(
    "--days", type=click.IntRange(1, 36500), default=365, metavar="N", help="It may be placed for so long.  [default: 365]"
)
@click.option("--key", metavar="NAME|ID", help="[default: the newest]")
@KEYS
@JSON
@told()
def sign(artifact: Path, folder: Path | None, as_json: bool, **flags: Any) -> None:
    """Write manifest.json and manifest.sig into an artifact: its files, its devices, its version, until when it may be placed.

    A key is made if there is none.
    """
    from pipeline.deploy.keys import keys_folder  # noqa: PLC0415 - cryptography and torch are slow to import
    from pipeline.deploy.sign import Signing  # noqa: PLC0415
    from pipeline.deploy.sign import sign as write_manifest  # noqa: PLC0415

    manifest = write_manifest(artifact, keys_folder(folder), Signing(**flags), _now(), _note)
    if as_json:
        click.echo(json.dumps({"digest": manifest.digest, "manifest": manifest.model_dump(mode="json")}))
        return
    print_line(f"{artifact}: signed as version {manifest.version} of '{manifest.name}', {len(manifest.files)} files")
    print_line(f"for {', '.join(manifest.devices)} ({manifest.architecture}), until {manifest.expires}")


@click.group(short_help="Make, list, rotate and revoke the keys that sign artifacts.")
def keys() -> None:
    """The keys that sign artifacts, and trusted.yaml, which says whose signatures count.

    To trust somebody else's key, copy its entry from their trusted.yaml into yours. Private keys stay where they were made.
    """


@keys.command()
@click.argument("name", default="default")
@KEYS
@JSON
@told()
def new(name: str, folder: Path | None, as_json: bool) -> None:
    """Make a key, and trust it."""
    from pipeline.deploy.keys import keys_folder, new_key  # noqa: PLC0415

    made = new_key(keys_folder(folder), name, _now())
    _tell(f"{made.key_id}: made, and trusted, as '{name}'", as_json, key_id=made.key_id, name=name)


@keys.command(name="list")
@KEYS
@JSON
@told()
def list_(folder: Path | None, as_json: bool) -> None:
    """Every key of the trust file."""
    from pipeline.deploy.keys import can_sign, keys_folder, read_trusted  # noqa: PLC0415

    place = keys_folder(folder)
    trusted = read_trusted(place)
    if as_json:
        click.echo(json.dumps({"keys": [key.model_dump() | {"can_sign": can_sign(place, key)} for key in trusted]}))
        return
    for key in trusted:
        state = f"revoked at {key.revoked_at}" if key.revoked_at else "signs" if can_sign(place, key) else "trusted"
        print_line(f"{key.key_id}  {key.name}  since {key.not_before}  {state}")
    if not trusted:
        print_line(f"no keys in {place}; the first `compress sign` or `compress keys new` makes one")


@keys.command()
@click.argument("name", default="default")
@KEYS
@JSON
@told()
def rotate(name: str, folder: Path | None, as_json: bool) -> None:
    """Make the successor of a key; the old one stays trusted until it is revoked."""
    from pipeline.deploy.keys import keys_folder, rotate_key  # noqa: PLC0415

    made = rotate_key(keys_folder(folder), name, _now())
    text = (
        f"{made.key_id}: made, and signs from now on, as '{name}'; sign what is still to be shipped anew, then revoke the old one"
    )
    _tell(text, as_json, key_id=made.key_id, name=name)


@keys.command()
@click.argument("key_id", metavar="ID")
@KEYS
@JSON
@told()
def revoke(key_id: str, folder: Path | None, as_json: bool) -> None:
    """Trust a key no more: whatever it signed is refused from now on, whenever that was."""
    from pipeline.deploy.keys import keys_folder, revoke_key  # noqa: PLC0415

    found = revoke_key(keys_folder(folder), key_id, _now())
    _tell(f"{key_id}: revoked at {found.revoked_at} ('{found.name}')", as_json, key_id=key_id, revoked_at=found.revoked_at)


def _tell(text: str, as_json: bool, **facts: str | None) -> None:
    print_line(json.dumps(facts) if as_json else text)


def _note(text: str) -> None:
    print_line(f"note: {text}", err=True)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
