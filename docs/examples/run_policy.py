"""Acts with a trained policy, step by step. Copy this file, and change `observe` and `send` to your camera and robot.

python docs/examples/run_policy.py --run runs/act --images FOLDER --instruction "push the red cube to the blue disc"

As it stands it reads the images of a folder in the order of their names, and prints one line of numbers a step.
"""

import argparse
import pathlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

import lapa_jax
from lapa_jax.inference.ensemble import Ensemble


def observe(folder: pathlib.Path) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Change this: yields what is seen at each step, (image uint8 [H, W, 3], state f32 [S] or None).

    Images may have any size: they are resized as those of the training were. The state is in the units of the training
    data; a policy that was trained without one takes None.
    """
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in (".jpg", ".jpeg", ".png"):
            yield np.asarray(Image.open(path).convert("RGB")), None


def send(action: np.ndarray) -> None:
    """Change this: gives the robot an action, f32 [A] in the units of the training data."""
    print(" ".join(f"{number:.5f}" for number in action))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run", required=True, help="run folder, checkpoint folder or exported folder")
    parser.add_argument("--images", required=True, type=pathlib.Path, help="folder of images, one a step")
    parser.add_argument("--instruction", required=True, help="what to do")
    parser.add_argument("--execute", type=int, default=1, help="actions of each chunk to execute before querying again")
    parser.add_argument("--ensemble", action="store_true", help="average overlapping chunks instead of --execute")
    args = parser.parse_args()

    # The first actions take seconds, since the model is compiled then.
    policy = lapa_jax.load(args.run)
    averaged, chunk, done = Ensemble(policy), None, 0
    for image, state in observe(args.images):
        if args.ensemble:
            send(averaged.act(image, args.instruction, state))
            continue
        # A chunk holds the next actions, [T, A]. Asking more often reacts faster, executing more of it is smoother.
        if chunk is None or done == min(args.execute, len(chunk)):
            chunk, done = policy.chunk(image, args.instruction, state), 0
        send(chunk[done])
        done += 1


if __name__ == "__main__":
    main()
