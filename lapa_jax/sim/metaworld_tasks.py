"""What Meta-World's 50 tasks are called in words. Ours: the package has no instructions.

The wordings name what tells a task from its neighbours on the same objects (open and close, push and pull, from above
and from the side).
"""

from lapa_jax.sim.options import Wordings

UNSEEN_TASKS = ("bin-picking-v3", "box-close-v3", "hand-insert-v3", "door-lock-v3", "door-unlock-v3")
"""The held-out tasks of the benchmark ML45 (Yu et al. 2019, arXiv:1910.10897)."""

TASKS = {
    "assembly-v3": Wordings(
        ("put the ring on the peg", "place the wrench's ring over the peg",
         "pick up the tool and hang its ring on the peg"),
        ("slip the ring over the peg", "thread the peg through the ring"),
    ),
    "basketball-v3": Wordings(
        ("put the ball into the basket", "drop the basketball through the hoop", "pick up the ball and dunk it"),
        ("score with the basketball", "lift the ball into the hoop"),
    ),
    "bin-picking-v3": Wordings(
        ("move the cube to the other bin", "take the cube from one bin to the other",
         "pick the cube and put it in the next bin"),
        ("carry the cube into the second bin", "transfer the block between the bins"),
    ),
    "box-close-v3": Wordings(
        ("put the lid on the box", "close the box with its lid", "pick up the cover and place it on the box"),
        ("cover the box", "shut the box with the lid"),
    ),
    "button-press-topdown-v3": Wordings(
        ("press the button from above", "push the red button down", "press down on the button"),
        ("push the button downwards", "hit the button from the top"),
    ),
    "button-press-topdown-wall-v3": Wordings(
        ("press the button behind the wall from above", "reach over the wall and push the button down",
         "go over the wall and press down on the button"),
        ("push the button downwards past the wall", "hit the button beyond the wall from the top"),
    ),
    "button-press-v3": Wordings(
        ("press the button from the front", "push the button in", "press the button on the box"),
        ("poke the button inwards", "hit the button from the front"),
    ),
    "button-press-wall-v3": Wordings(
        ("press the button behind the wall from the front", "go over the wall and push the button in",
         "get past the wall and press the button"),
        ("poke the button inwards beyond the wall", "cross the wall and hit the button"),
    ),
    "coffee-button-v3": Wordings(
        ("press the button of the coffee machine", "start the coffee machine", "push the coffee machine's button"),
        ("switch the coffee machine on", "make some coffee"),
    ),
    "coffee-pull-v3": Wordings(
        ("pull the mug away from the coffee machine", "take the mug out of the coffee machine",
         "move the mug from the coffee machine to the goal"),
        ("drag the cup away from the coffee maker", "get the mug out from under the machine"),
    ),
    "coffee-push-v3": Wordings(
        ("push the mug under the coffee machine", "put the mug in the coffee machine",
         "slide the mug to the coffee machine"),
        ("shove the cup below the coffee maker", "place the cup where the coffee comes out"),
    ),
    "dial-turn-v3": Wordings(
        ("turn the dial", "rotate the dial", "turn the dial around"),
        ("twist the dial round", "spin the knob of the dial"),
    ),
    "disassemble-v3": Wordings(
        ("take the ring off the peg", "lift the wrench's ring off the peg", "remove the ring from the peg"),
        ("pull the ring up from the peg", "free the tool from the peg"),
    ),
    "door-close-v3": Wordings(
        ("close the door", "push the door shut", "swing the door closed"),
        ("shut the door", "get the door to close"),
    ),
    "door-lock-v3": Wordings(
        ("lock the door", "turn the lock of the door to close it", "rotate the lock until the door is locked"),
        ("fasten the door's lock", "make sure the door is locked"),
    ),
    "door-open-v3": Wordings(
        ("open the door", "pull the door open", "swing the door open"),
        ("get the door to open", "pull at the door's handle"),
    ),
    "door-unlock-v3": Wordings(
        ("unlock the door", "turn the lock of the door to open it", "rotate the lock to unlock the door"),
        ("undo the door's lock", "make sure the door is not locked"),
    ),
    "drawer-close-v3": Wordings(
        ("close the drawer", "push the drawer shut", "push the drawer in"),
        ("shut the drawer", "slide the drawer back in"),
    ),
    "drawer-open-v3": Wordings(
        ("open the drawer", "pull the drawer out", "pull the drawer open by its handle"),
        ("slide the drawer out", "get the drawer to open"),
    ),
    "faucet-close-v3": Wordings(
        ("close the faucet", "turn the faucet off", "turn the faucet's handle to close it"),
        ("shut the tap", "stop the water"),
    ),
    "faucet-open-v3": Wordings(
        ("open the faucet", "turn the faucet on", "turn the faucet's handle to open it"),
        ("run the tap", "let the water flow"),
    ),
    "hammer-v3": Wordings(
        ("hammer the nail into the board", "hit the nail with the hammer", "pick up the hammer and drive the nail in"),
        ("knock the nail in", "use the hammer on the nail"),
    ),
    "hand-insert-v3": Wordings(
        ("put the hand into the hole", "insert the gripper into the hole",
         "lower the gripper into the hole in the table"),
        ("reach into the hole", "stick the gripper down the hole"),
    ),
    "handle-press-side-v3": Wordings(
        ("press the handle down from the side", "push the sideways handle down", "press down the handle at the side"),
        ("force the sideways handle downwards", "lower the handle at the side"),
    ),
    "handle-press-v3": Wordings(
        ("press the handle down", "push the handle down", "press down on the handle"),
        ("force the handle downwards", "lower the handle"),
    ),
    "handle-pull-side-v3": Wordings(
        ("pull the handle up from the side", "pull the sideways handle up", "lift the handle at the side"),
        ("raise the sideways handle", "bring the handle at the side up"),
    ),
    "handle-pull-v3": Wordings(
        ("pull the handle up", "lift the handle", "pull up on the handle"),
        ("raise the handle", "bring the handle up"),
    ),
    "lever-pull-v3": Wordings(
        ("pull the lever up", "lift the lever", "turn the lever upwards"),
        ("raise the lever", "swing the lever up"),
    ),
    "peg-insert-side-v3": Wordings(
        ("insert the peg into the hole", "pick up the peg and insert it sideways",
         "put the peg into the box from the side"),
        ("plug the peg into the hole of the box", "slide the peg into its hole"),
    ),
    "peg-unplug-side-v3": Wordings(
        ("pull the peg out of the hole", "unplug the peg", "pull the peg out of the box sideways"),
        ("remove the peg from its hole", "take the plug out"),
    ),
    "pick-out-of-hole-v3": Wordings(
        ("pick the puck out of the hole", "lift the puck out of the hole", "take the puck from the hole to the goal"),
        ("get the puck out of the hole", "grab what is in the hole and bring it out"),
    ),
    "pick-place-v3": Wordings(
        ("pick up the puck and place it at the target", "grasp the puck and bring it to the goal",
         "lift the puck to the marked spot"),
        ("carry the puck up to the goal", "hold the puck at the target"),
    ),
    "pick-place-wall-v3": Wordings(
        ("pick up the puck and place it behind the wall", "carry the puck over the wall to the goal",
         "lift the puck past the wall to the target"),
        ("bring the puck across the wall", "get the puck to the far side of the wall"),
    ),
    "plate-slide-back-side-v3": Wordings(
        ("slide the plate out of the cabinet sideways", "pull the plate sideways out of the goal",
         "move the plate back out to the side"),
        ("drag the plate out at the side", "get the plate out of the cabinet, sideways"),
    ),
    "plate-slide-back-v3": Wordings(
        ("slide the plate out of the cabinet", "pull the plate back out of the goal",
         "move the plate back towards you"),
        ("drag the plate back out", "get the plate out of the cabinet"),
    ),
    "plate-slide-side-v3": Wordings(
        ("slide the plate into the cabinet sideways", "push the plate sideways into the goal",
         "move the plate to the side, into the cabinet"),
        ("shove the plate in from the side", "get the plate into the cabinet, sideways"),
    ),
    "plate-slide-v3": Wordings(
        ("slide the plate into the cabinet", "push the plate forward into the goal", "move the plate into the cabinet"),
        ("shove the plate forward", "get the plate into the cabinet"),
    ),
    "push-back-v3": Wordings(
        ("pull the block back to the goal", "push the block back towards you", "bring the block back to the target"),
        ("drag the block back", "return the block to the marked place"),
    ),
    "push-v3": Wordings(
        ("push the puck to the target", "push the red puck to the goal", "slide the puck to the marked spot"),
        ("shove the puck over to the goal", "get the puck to the target on the table"),
    ),
    "push-wall-v3": Wordings(
        ("push the puck around the wall to the target", "slide the puck past the wall to the goal",
         "go around the wall with the puck"),
        ("shove the puck behind the wall", "get the puck to the goal on the other side of the wall"),
    ),
    "reach-v3": Wordings(
        ("reach the target", "move the hand to the target", "move the gripper to the marked spot"),
        ("bring the gripper to the goal", "go to the target with the hand"),
    ),
    "reach-wall-v3": Wordings(
        ("reach the target behind the wall", "move the hand past the wall to the target",
         "move the gripper over the wall to the marked spot"),
        ("bring the gripper to the goal beyond the wall", "cross the wall with the hand"),
    ),
    "shelf-place-v3": Wordings(
        ("put the block on the shelf", "pick up the block and place it on the shelf", "lift the block to the shelf"),
        ("set the block down on the shelf", "store the block in the shelf"),
    ),
    "soccer-v3": Wordings(
        ("push the ball into the goal", "kick the ball into the goal", "score a goal"),
        ("get the soccer ball into the net", "shoot the ball at the goal"),
    ),
    "stick-pull-v3": Wordings(
        ("pull the bottle with the stick", "pick up the stick and pull the thermos with it",
         "hook the handle with the stick and pull"),
        ("drag the thermos along with the stick", "use the stick to get the bottle closer"),
    ),
    "stick-push-v3": Wordings(
        ("push the bottle with the stick", "pick up the stick and push the thermos with it",
         "move the bottle to the goal by pushing with the stick"),
        ("shove the thermos along with the stick", "use the stick to get the bottle away"),
    ),
    "sweep-into-v3": Wordings(
        ("sweep the block into the hole", "push the block into the hole",
         "slide the block until it drops into the hole"),
        ("wipe the block into the hole", "get the block to fall into the hole"),
    ),
    "sweep-v3": Wordings(
        ("sweep the block off the table", "push the block off the table", "slide the block over the edge"),
        ("wipe the block from the table", "clear the block off the table"),
    ),
    "window-close-v3": Wordings(
        ("close the window", "slide the window shut", "push the window handle to close it"),
        ("shut the window", "get the window to close"),
    ),
    "window-open-v3": Wordings(
        ("open the window", "slide the window open", "push the window handle to open it"),
        ("get the window to open", "let some air in"),
    ),
}  # fmt: skip
"""Task of the package -> its instructions, in alphabetical order."""
