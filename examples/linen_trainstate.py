"""Trains a small Flax Linen network on handwritten digits, with Gradient Centralization.

The plain loop of flax.training.train_state. One line of it is special: centralize() goes first in
the optimizer's chain.
"""

import argparse

import flax.linen as nn
import jax
import numpy as np
import optax
from flax.training.train_state import TrainState
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from optax_gc import centralize, summary


class CNN(nn.Module):
    """Two convolutions and a head for images of 8 by 8 pixels."""

    @nn.compact
    def __call__(self, x):
        """Returns logits."""
        x = nn.relu(nn.Conv(16, (3, 3))(x))
        x = nn.relu(nn.Conv(32, (3, 3), strides=2)(x))
        return nn.Dense(10)(x.reshape(len(x), -1))


@jax.jit
def train_step(state, x, y):
    """Returns the state after one step, and the loss before it."""

    def loss_fn(params):
        logits = state.apply_fn({"params": params}, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    return state.apply_gradients(grads=grads), loss


@jax.jit
def accuracy(state, x, y):
    """Returns the share of images that are classified correctly."""
    return (state.apply_fn({"params": state.params}, x).argmax(axis=-1) == y).mean()


def main():
    """Trains, and prints loss and accuracy of each epoch."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=10, help="times through the training images")
    parser.add_argument("--batch-size", type=int, default=64, help="images a step")
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate of Adam")
    parser.add_argument("--seed", type=int, default=0, help="of the weights, split and batches")
    args = parser.parse_args()

    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    train_x, test_x, train_y, test_y = train_test_split(
        images, labels, test_size=360, stratify=labels, random_state=args.seed
    )
    if not 1 <= args.batch_size <= len(train_x):
        parser.error(f"--batch-size is {args.batch_size}: use 1 to {len(train_x)}")
    if args.epochs < 1:
        parser.error(f"--epochs is {args.epochs}: use 1 or more")
    if not 0 < args.lr < np.inf:
        parser.error(f"--lr is {args.lr}: use a number above 0")

    model = CNN()
    params = model.init(jax.random.key(args.seed), train_x[:1])["params"]
    tx = optax.chain(centralize(), optax.adam(args.lr))
    state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)
    print(summary(params))

    rng = np.random.default_rng(args.seed)
    for epoch in range(1, args.epochs + 1):
        losses = []
        shuffled = rng.permutation(len(train_x))
        # The last, smaller batch is left out: another shape would be compiled for.
        for i in range(0, len(shuffled) - args.batch_size + 1, args.batch_size):
            batch = shuffled[i : i + args.batch_size]
            state, loss = train_step(state, train_x[batch], train_y[batch])
            losses.append(loss)
        correct = accuracy(state, test_x, test_y)
        print(f"epoch {epoch:2}  training loss {np.mean(losses):.4f}  test accuracy {correct:.2%}")


if __name__ == "__main__":
    main()
