"""The sharpness of a loss: the largest eigenvalue of its Hessian, or of PHP."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .._axes import AxesLike, check_params, resolve
from .._project import subtract_mean


class Sharpness(NamedTuple):
    """An eigenvalue and its error: an eigenvalue lies within ``error`` of ``value``."""

    value: jax.Array  #: the estimate of the eigenvalue
    error: jax.Array  #: how far the nearest eigenvalue may be from it


def sharpness(
    loss: Callable[[Any], jax.Array],
    params: Any,
    *,
    axes: AxesLike | None = None,
    key: jax.Array,
    num_matvecs: int = 32,
) -> Sharpness:
    """Computes the algebraically largest eigenvalue of the loss's Hessian, or of PHP.

    Gradient descent is stable for step sizes below 2 / λ(H), and with GC below 2 / λ(PHP), which is
    never larger than λ(H) where that is positive. Lanczos' algorithm with full reorthogonalisation,
    on Hessian-vector products: nothing of the size of the Hessian is built. Needs matfree.

    Args:
      loss: function of the parameters to a real scalar. For data larger than one batch, let it
        average over batches, one after the other and with nothing kept between them:
        ``jnp.mean(jax.lax.map(jax.checkpoint(lambda batch: batch_loss(params, batch)), batches))``.
      params: pytree of real arrays. Others than floating-point are held constant.
      axes: axes tree, prefix tree or label function of the projection P of `centralize`; None for
        no projection. PHP has the eigenvalue 0, so that its largest is never negative.
      key: for the random direction to start from.
      num_matvecs: how many Hessian-vector products to spend. It holds as many copies of the
        parameters. More lower the error. Outside of ``jax.jit``, every call compiles anew.

    Returns:
      `Sharpness`: scalars in float32 (float64 for such parameters). ``value`` never exceeds the
      largest eigenvalue, up to rounding. ``error`` is the norm of the residual Hv - λv, plus
      rounding: should it be large, spend more products. Rounding is that of the parameters' least
      accurate dtype (3 % of the largest eigenvalue for bfloat16), and in float32 an eigenvalue
      beyond about 1e-18 to 1e18 has a large or infinite error: scale the loss.

    Raises:
      ImportError: if matfree is not installed.
      TypeError: if some parameters are complex, ``loss`` cannot be called or is no scalar, or
        ``key`` is no random key.
      ValueError: if there are no floating-point parameters, ``num_matvecs`` is below 1, or the axes
        do not match the parameters.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from optax_gc import diagnostics
      >>> loss = lambda p: 3 * p["w"].mean() ** 2 + (p["w"] ** 2 * jnp.array([[1.0], [2.0]])).sum()
      >>> params, key = {"w": jnp.array([[1.0], [-1.0]])}, jax.random.key(0)
      >>> whole = diagnostics.sharpness(loss, params, key=key)
      >>> centred = diagnostics.sharpness(loss, params, axes={"w": (0,)}, key=key)
      >>> print(f"{whole.value:.3f} {centred.value:.3f}")
      6.303 3.000

      To watch it while training, at the cost of the products in every step:

      >>> import optax
      >>> measure = optax.stateless(lambda _, p: diagnostics.sharpness(loss, p, key=key))
      >>> tx = optax.chain(optax.sgd(0.1), optax.monitor({"sharpness": measure}))
      >>> _, state = tx.update(jax.grad(loss)(params), tx.init(params), params)
      >>> print(f"{optax.tree.get(state, 'sharpness').value:.3f}")
      6.303

    References:
      Yong et al., Gradient Centralization, https://arxiv.org/abs/2004.01461, theorem 4.2.
      Krämer et al., Gradients of Functions of Large Matrices, https://arxiv.org/abs/2405.17277.
    """
    if not callable(loss):
        raise TypeError(
            f"loss is a {type(loss).__name__}, which cannot be called. "
            "Give sharpness(loss, params, key=key), with loss a function of params."
        )
    check_params(params, "sharpness(loss, params)")
    try:
        from matfree import decomp
    except ImportError as error:
        raise ImportError(
            'sharpness() needs matfree. Run: pip install "optax-gc[diagnostics]"'
        ) from error

    leaves = resolve(() if axes is None else axes, params)
    values, structure = jax.tree_util.tree_flatten(params)
    free = [i for i, x in enumerate(values) if jnp.issubdtype(jnp.result_type(x), jnp.inexact)]
    points = [jnp.asarray(values[i]) for i in free]
    if complex_ones := [
        leaves[i].path for i, x in zip(free, points, strict=True) if jnp.iscomplexobj(x)
    ]:
        raise TypeError(f"{complex_ones} are complex. Split them into real and imaginary parts.")
    size = sum(x.size for x in points)
    if not size or num_matvecs < 1:
        raise ValueError(
            f"params hold {size} floating-point numbers, and num_matvecs is {num_matvecs}. Give "
            "both at least 1."
        )
    wide = jnp.float64 if any(x.dtype == jnp.float64 for x in points) else jnp.float32

    def gradient(points: list[jax.Array]) -> list[jax.Array]:
        def of_free(points: list[jax.Array]) -> jax.Array:
            whole = list(values)
            for i, x in zip(free, points, strict=True):
                whole[i] = x
            return loss(jax.tree_util.tree_unflatten(structure, whole))

        return jax.grad(of_free)(points)

    def project(v: list[jax.Array]) -> list[jax.Array]:
        pairs = zip(v, (leaves[i].axes for i in free), strict=True)
        return [subtract_mean(x, axes) if axes else x for x, axes in pairs]

    def php(v: list[jax.Array]) -> list[jax.Array]:
        pairs = zip(project(v), points, strict=True)
        tangents = [lax.convert_element_type(x, w.dtype) for x, w in pairs]
        _, hv = jax.jvp(gradient, (points,), (tangents,))
        return project([lax.convert_element_type(x, wide) for x in hv])

    _check(loss, params, key)
    keys = jax.random.split(key, len(points))
    start = [jax.random.normal(k, x.shape, wide) for k, x in zip(keys, points, strict=True)]
    arnoldi = decomp.hessenberg(min(num_matvecs, size), reortho="full", custom_vjp=False)
    result = arnoldi(php, start)
    projected, residual = jnp.asarray(result.J_small), result.residual
    squares = [jnp.vdot(x, x) for x in jax.tree_util.tree_leaves(residual)]
    length = jnp.sqrt(sum(squares, jnp.zeros((), wide)))
    alpha, beta = jnp.diag(projected), jnp.append(jnp.diag(projected, -1), length)
    value, error, largest = _largest(alpha, beta)
    # A product is rounded to the dtype of the parameters, and squares below `tiny` count as zero.
    rounding = 4 * max(float(jnp.finfo(x.dtype).eps) for x in points) * largest
    return Sharpness(value, error + rounding + math.sqrt(size * float(jnp.finfo(wide).tiny)))


def _check(loss: Callable[[Any], Any], params: Any, key: Any) -> None:
    if not hasattr(key, "dtype"):
        raise TypeError(f"key is {key!r}. Give a random key, such as jax.random.key(0).")
    out = jax.eval_shape(loss, params)
    if jax.tree_util.tree_structure(out) != jax.tree_util.tree_structure(0) or out.shape:
        raise TypeError(
            f"loss returns {out}, and must return one real number. Take the mean of losses, and "
            "leave auxiliary outputs out: lambda params: loss(params)[0]."
        )


def _largest(alpha: jax.Array, beta: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The largest eigenvalue of a Lanczos matrix of diagonal `alpha`, its residual's norm, and ‖H‖.

    Args:
      alpha: qᵀAq of each direction.
      beta: beside it, the length of what A makes of each direction outside of those so far.
    """
    eps = jnp.finfo(alpha.dtype).eps
    # A Hessian of low rank runs out of directions: the next would be rounding noise divided by its
    # length, or 0 / 0. What came before is exact then. Cut the rest off, for eigenvalues that are
    # not the largest.
    goes_on = jnp.cumsum(~(beta > 4 * eps * lax.cummax(jnp.abs(alpha) + beta))) == 0
    reached = jnp.append(True, goes_on[:-1])
    alpha = jnp.where(reached, alpha, jnp.min(jnp.where(reached, alpha, jnp.inf)))
    cut = jnp.max(jnp.where(reached & ~goes_on, beta, 0))  # infinite, if its squares overflow
    beta = jnp.where(goes_on, beta, 0)
    beside = beta[:-1]
    ritz, vectors = jnp.linalg.eigh(jnp.diag(alpha) + jnp.diag(beside, 1) + jnp.diag(beside, -1))
    left = beta[-1] * jnp.abs(vectors[-1, -1])
    return ritz[-1], left + cut, jnp.max(jnp.abs(ritz))
