"""A tiny environment of gymnasium, registered on import: a pixel is moved into the right half of an image."""

import gymnasium
import numpy as np


class Tiny(gymnasium.Env):
    """The first number of an action moves a dot on [0, 1]; it starts in the left half, where the seed puts it."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}

    def __init__(self, render_mode=None, nested=False, info=True, wide=8, bound=0.25, falls=False, shape=(1, 1)):
        self.render_mode, self._nested, self._gives_info = render_mode, nested, info
        self._wide, self._falls = wide, falls
        self.action_space = gymnasium.spaces.Box(-bound, 2 * bound, tuple(shape), np.float64)
        self.observation_space = gymnasium.spaces.Box(0, 1, (2,), np.float32)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.count = self.np_random.uniform(0, 0.5), 0
        return self._observation(), self._info()

    def step(self, action):
        assert self.action_space.contains(action), action
        self.place, self.count = float(np.clip(self.place + action.flat[0], 0, 1)), self.count + 1
        fallen = self._falls and self.count == 2
        return self._observation(), self.place, fallen, False, self._info()

    def render(self):
        image = np.zeros((4, self._wide, 3), np.uint8)
        image[:, int(self.place * (self._wide - 1))] = 255
        return image

    def _observation(self):
        state = np.array([self.place, self.count], np.float32)
        if not self._nested:
            return state
        images = {"top": self.render(), "side": self.render()[:, ::-1]}
        return {"pixels": images, "agent.pos": state[:1], "count": state[1:], "step": self.count}

    def _info(self):
        return {"is_success": self.place > 0.5, "place": self.place, "wish": "go right"} if self._gives_info else {}


gymnasium.register("lapa_jax_tests/Tiny-v0", Tiny, max_episode_steps=12)
gymnasium.register("lapa_jax_tests/Endless-v0", Tiny)
