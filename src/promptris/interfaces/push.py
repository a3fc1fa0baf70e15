"""`promptris push`: a model folder to the hub."""

from __future__ import annotations

from typing import Annotated

import typer

from promptris.interfaces.arguments import Clip, Sam


def push_command(
    folder: Annotated[
        str,
        typer.Argument(metavar="FOLDER", help="Model folder, such as runs/quick/model, or a built-in name."),
    ],
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="owner/name on the hub; made if needed.")],
    private: Annotated[
        bool, typer.Option("--private", help="Make the repository visible to its owner only.")
    ] = False,
    full: Annotated[
        bool,
        typer.Option("--full", help="Upload CLIP and SAM too, so that nothing else is needed to load it."),
    ] = False,
    message: Annotated[str | None, typer.Option(help="What changed, for the commit.")] = None,
    licence: Annotated[
        str | None,
        typer.Option("--license", help='For the card, as the hub spells it: "apache-2.0".'),
    ] = None,
    clip: Clip = None,
    sam: Sam = None,
) -> int:
    """Upload a model folder with its card to the Hugging Face hub.

    Log in once with  hf auth login , or set HF_TOKEN. Prints the address of the model's page.
    """
    from promptris.modeling.publishing import push_folder

    print(
        push_folder(
            folder, repo_id, full=full, private=private, message=message, license=licence, clip=clip, sam=sam
        )
    )
    return 0
