"""The commands about signing: sign, keys. They turn flags into one or two lines of output."""

import datetime
import json
from pathlib import Path
from typing import Any

import click

from pipeline.cli.exit_codes import handle_errors
from pipeline.cli.terminal import print_line

__all__ = ["keys", "sign"]

KEYS = click.option(
    "--keys",
    "folder",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder of the keys.  [default: $COMPRESS_KEYS_DIR, ~/.config/compress/keys]",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON to stdout, all else to stderr.")


@click.command(short_help="Sign an artifact, so that devices accept it.")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option(
    "--name", metavar="NAME", help="Name of what is shipped; versions are counted per name.  [default: the network's name]"
)
@click.option(
    "--version",
    type=click.IntRange(1, 2**53 - 1),
    metavar="N",
    help="Version number; a device refuses an older one than it has.  [default: the time]",
)
@click.option(
    "--device",
    "devices",
    multiple=True,
    metavar="GLOB",
    help="Pattern of the names of devices that may install it. Repeatable.  [default: the device of the artifact's profile]",
)
@click.option(
    "--days", type=click.IntRange(1, 36500), default=365, metavar="N", help="Number of days until it expires.  [default: 365]"
)
@click.option("--key", metavar="NAME|ID", help="Key that signs.  [default: the newest]")
@KEYS
@JSON
@handle_errors()
def sign(artifact: Path, folder: Path | None, as_json: bool, **flags: Any) -> None:
    """Write manifest.json and manifest.sig into an artifact.

    The manifest lists the files, the devices, the version and the expiry date. If there is no key, one is created.
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


@click.group(short_help="Create, list, rotate and revoke the keys that sign artifacts.")
def keys() -> None:
    """Create, list, rotate and revoke the keys that sign artifacts.

    trusted.yaml lists the keys whose signatures are valid. To trust another person's key, copy its entry from their trusted.yaml
    into yours. Private keys never leave the folder where they were created.
    """


@keys.command()
@click.argument("name", default="default")
@KEYS
@JSON
@handle_errors()
def new(name: str, folder: Path | None, as_json: bool) -> None:
    """Create a key, and trust it."""
    from pipeline.deploy.keys import keys_folder, new_key  # noqa: PLC0415

    made = new_key(keys_folder(folder), name, _now())
    _tell(f"{made.key_id}: created and trusted, name '{name}'", as_json, key_id=made.key_id, name=name)


@keys.command(name="list")
@KEYS
@JSON
@handle_errors()
def list_(folder: Path | None, as_json: bool) -> None:
    """List all keys of the trust file."""
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
        print_line(f"no keys in {place}; create one with `compress keys new` or `compress sign`")


@keys.command()
@click.argument("name", default="default")
@KEYS
@JSON
@handle_errors()
def rotate(name: str, folder: Path | None, as_json: bool) -> None:
    """Create the successor of a key. The old key stays trusted until it is revoked."""
    from pipeline.deploy.keys import keys_folder, rotate_key  # noqa: PLC0415

    made = rotate_key(keys_folder(folder), name, _now())
    text = (
        f"{made.key_id}: created, name '{name}', and signs from now on; sign artifacts again that are not shipped yet, "
        "then revoke the old key"
    )
    _tell(text, as_json, key_id=made.key_id, name=name)


@keys.command()
@click.argument("key_id", metavar="ID")
@KEYS
@JSON
@handle_errors()
def revoke(key_id: str, folder: Path | None, as_json: bool) -> None:
    """Revoke a key. Everything that it signed is refused from now on, whatever its date."""
    from pipeline.deploy.keys import keys_folder, revoke_key  # noqa: PLC0415

    found = revoke_key(keys_folder(folder), key_id, _now())
    _tell(f"{key_id}: revoked at {found.revoked_at} ('{found.name}')", as_json, key_id=key_id, revoked_at=found.revoked_at)


def _tell(text: str, as_json: bool, **facts: str | None) -> None:
    print_line(json.dumps(facts) if as_json else text)


def _note(text: str) -> None:
    print_line(f"note: {text}", err=True)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
