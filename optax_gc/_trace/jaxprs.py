"""What is read off JAX's own representation of a function, in one place.

Names of parameters and the nesting of jaxprs change between versions of JAX, so only this module
knows them. `PARAMETERS` lists those that were looked at. Anything else may change what a primitive
means: `unknown` names it, for a refusal.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Shape = tuple[int, ...]


def shape_of(var: Any) -> Shape:
    """The shape of a variable or a number; () for what is no array."""
    return tuple(getattr(var.aval, "shape", ()))


def is_inexact(var: Any) -> bool:
    """Whether a variable is of a dtype that carries gradients."""
    dtype = getattr(var.aval, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.inexact)


def is_literal(atom: Any) -> bool:
    """Whether an operand of an equation is a number rather than a variable."""
    return hasattr(atom, "val")


# Their effect keeps them alive, and is not on anything that is differentiated.
_HARMLESS_EFFECTS = frozenset({"debug_callback", "debug_print"})


def has_effect(eqn: Any) -> bool:
    """Whether an equation does something besides its results, such as writing to a reference."""
    return bool(eqn.effects) and eqn.primitive.name not in _HARMLESS_EFFECTS


def name_stack(eqn: Any) -> Any:
    """The modules and transformations that an equation is in; neighbours share one object."""
    return eqn.source_info.name_stack


class Derivative(IntEnum):
    """What of a derivative that the function itself takes is computed."""

    NONE = 0  # no derivative
    FORWARD = 1  # values, or tangents
    BACKWARD = 2  # cotangents


def derivative(stack: Any) -> Derivative:
    """What of a derivative that the function itself takes is computed within a name stack."""
    # A scope that a user calls "transpose" is a Scope, the transformation a Transform.
    names = {f.name for f in stack.stack if type(f).__name__ == "Transform"}
    if "transpose" in names:
        return Derivative.BACKWARD
    return Derivative.FORWARD if "jvp" in names else Derivative.NONE


def scope(stack: Any) -> str:
    """The innermost scope of a name stack, which is an einsum's equation within it."""
    names = [f.name for f in stack.stack if type(f).__name__ == "Scope"]
    return names[-1] if names else ""


def as_part_of(eqn: Any, other: Any) -> Any:
    """An equation in the modules and transformations that another is in."""
    return eqn.replace(source_info=other.source_info)


def users(jaxpr: Any) -> Mapping[Any, Sequence[int]]:
    """For each variable, the equations that it is an operand of; -1 stands for the results."""
    found: dict[Any, list[int]] = defaultdict(list)
    for i, atoms in [*((i, e.invars) for i, e in enumerate(jaxpr.eqns)), (-1, jaxpr.outvars)]:
        for atom in atoms:
            if not is_literal(atom):
                found[atom].append(i)
    return found


def last_uses(eqns: Sequence[Any], results: Sequence[Any]) -> list[list[Any]]:
    """For each equation, the variables that neither later ones nor the results use."""
    later = {atom for atom in results if not is_literal(atom)}
    found: list[list[Any]] = []
    for eqn in reversed(eqns):
        last = {a for a in eqn.invars if not is_literal(a)} - later
        found.append([*last])
        later |= last
    return found[::-1]


class Body(NamedTuple):
    """A jaxpr within an equation, and the values of its constants."""

    jaxpr: Any
    consts: Sequence[Any]


def opened(jaxpr: Any) -> Body:
    """The parts of a jaxpr, closed or open; since JAX 0.11 the two are one class."""
    return Body(jaxpr.jaxpr, jaxpr.consts) if hasattr(jaxpr, "jaxpr") else Body(jaxpr, ())


# composite's is `jaxpr` up to JAX 0.10 and `call_jaxpr` since; custom_vmap's is `call`.
_BODIES = ("jaxpr", "call_jaxpr", "fun_jaxpr", "call", "callee")


def body(eqn: Any) -> Body:
    """The function that an equation calls: of jit, remat2, shard_map, xla_pmap and composite, of
    custom derivatives, custom_vmap and linear_call, and the body of reduce and reduce_window.
    """
    inner = opened(next(eqn.params[name] for name in _BODIES if name in eqn.params))
    return inner._replace(consts=eqn.params["consts"]) if "consts" in eqn.params else inner


class Loop(NamedTuple):
    """A scan, whose operands are constants, then carried values, then what is sliced."""

    body: Body
    n_consts: int
    n_carry: int
    length: int

    @property
    def carry(self) -> slice:
        """Where the carried values are among operands and among the body's inputs."""
        return slice(self.n_consts, self.n_consts + self.n_carry)


def loop(eqn: Any) -> Loop:
    """What a scan does."""
    if "ft_in" in eqn.params:  # since JAX 0.11
        consts, carry, _ = eqn.params["ft_in"].unpack()
        n_consts, n_carry = len(consts), len(carry)
    else:
        n_consts, n_carry = eqn.params["num_consts"], eqn.params["num_carry"]
    return Loop(body(eqn), n_consts, n_carry, eqn.params["length"])


class While(NamedTuple):
    """A loop whose operands are constants of its condition, of its body, then carried values."""

    cond: Body
    n_cond: int
    body: Body
    n_body: int


def while_loop(eqn: Any) -> While:
    """What a while loop does."""
    names = ("cond_jaxpr", "cond_nconsts", "body_jaxpr", "body_nconsts")
    cond, n_cond, inner, n_body = (eqn.params[name] for name in names)
    return While(opened(cond), n_cond, opened(inner), n_body)


def branches(eqn: Any) -> list[Body]:
    """The functions that a cond chooses from."""
    return [opened(branch) for branch in eqn.params["branches"]]


Names = tuple[str, ...]


class Shards(NamedTuple):
    """A function of shards: over which axes of the mesh each dimension of a value is split."""

    operands: tuple[tuple[Names, ...], ...]  # for each, for each of its dimensions
    results: tuple[tuple[Names, ...], ...]


def shards(eqn: Any) -> Shards:
    """How a shard_map splits its operands and joins its results."""

    def split(vars: Sequence[Any], specs: Sequence[Any]) -> tuple[tuple[Names, ...], ...]:
        return tuple(_spec(spec, len(shape_of(v))) for v, spec in zip(vars, specs, strict=True))

    inputs, outputs = eqn.params["in_specs"], eqn.params["out_specs"]
    return Shards(split(eqn.invars, inputs), split(eqn.outvars, outputs))


def _spec(spec: Any, rank: int) -> tuple[Names, ...]:
    entries = [() if e is None else (e,) if isinstance(e, str) else tuple(e) for e in spec]
    return tuple(entries) + ((),) * (rank - len(entries))


class Collective(NamedTuple):
    """What an operation between shards does."""

    axes: tuple[Any, ...]  # of the mesh or the map; an int is a dimension of the value itself
    dimension: int | None = None  # that is gathered in the result, or scattered or split
    onto: int | None = None  # that all_to_all concatenates along
    tiled: bool = True  # whether that dimension is there before and after
    grouped: bool = False  # within groups of shards, rather than between all of them


def collective(eqn: Any) -> Collective:
    """What a psum, all_gather, reduce_scatter, ppermute, all_to_all or the like does."""
    params = eqn.params
    axes = params["axes"] if "axes" in params else params["axis_name"]
    dimensions = ("all_gather_dimension", "scatter_dimension", "split_axis")
    return Collective(
        tuple(axes) if isinstance(axes, tuple | list | set | frozenset) else (axes,),
        next((params[name] for name in dimensions if name in params), None),
        params.get("concat_axis"),
        params.get("tiled", True),
        params.get("axis_index_groups") is not None,
    )


def unknown(eqn: Any) -> str:
    """Why an equation cannot be read: a parameter that is new, or is gone; else nothing.

    A primitive that is not in `PARAMETERS` has none that is known.
    """
    name, there = eqn.primitive.name, eqn.params.keys()
    known, required = PARAMETERS.get(name, frozenset()), _REQUIRED.get(name, frozenset())
    if required <= there <= known:
        return ""
    if new := sorted(there - known):
        return f"jax {jax.__version__}'s {name} has a parameter {new[0]!r} that is not known here"
    return f"jax {jax.__version__}'s {name} has no parameter {min(required - there)!r}"


# For each primitive, its parameters in JAX 0.7 to 0.12; Equinox's come last. One with a "?" may be
# missing: it is not read, or is not in every version. An einsum is what einsums.py makes.
_TABLE = """
abs acos acosh asin asinh atan atan2 atanh bessel_i0e bessel_i1e ceil clamp complex cosh digamma
add add_any and div eq eq_to erf erf_inv floor ge gt igamma igamma_grad_a igammac imag is_finite le
le_to lgamma lt lt_to max min ne neg nextafter not one_minus_square optimization_barrier or
polygamma polynomial pow random_gamma_grad real reciprocal regularized_incomplete_beta rem select_n
copy clz population_count shift_left shift_right_arithmetic shift_right_logical sign sinh square
stop_gradient sub xor zeta :
cbrt cos erfc exp exp2 expm1 log log1p log2 logistic rsqrt sin sqrt tan tanh : accuracy?
mul : out_dtype?
integer_pow : y
round : rounding_method
conj : input_dtype?
convert_element_type : new_dtype sharding? weak_type?
bitcast_convert_type : new_dtype
reduce_precision : exponent_bits? mantissa_bits?
name : name
layout_constraint : layout?
sharding_constraint : context_mesh? layout? sharding? unconstrained_dims?
reshard mesh_cast : concrete_mesh? dst_sharding?
device_put : copy_semantics? devices? srcs?
random_bits : bit_width shape
random_clone random_fold_in random_unwrap threefry2x32 :
random_gamma : log_space
random_seed random_wrap : impl
random_split rng_uniform : shape
rng_bit_generator : algorithm dtype out_sharding? shape

transpose : permutation
reshape : dimensions new_sizes? sharding?
squeeze : dimensions
broadcast_in_dim : broadcast_dimensions shape? sharding?
tile : reps
rev : dimensions
iota : dimension dtype? shape? sharding?
empty empty2 : dtype? memory_space? out_sharding? shape?

slice : start_indices limit_indices strides
split : axis sizes
stack unstack : axis
concatenate : dimension
pad : padding_config
dynamic_slice : slice_sizes
dynamic_update_slice :
gather : dimension_numbers fill_value? indices_are_sorted? mode slice_sizes unique_indices?
scatter scatter-add scatter-sub scatter-mul scatter-max scatter-min :
  dimension_numbers indices_are_sorted? mode unique_indices? update_consts? update_jaxpr?

reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor : axes out_sharding?
argmax argmin : axes index_dtype?
reduce : computation? dimensions jaxpr
cumsum cumprod cummax cummin cumlogsumexp : axis reverse
sort : dimension is_stable? num_keys
top_k : axis? is_stable? k
approx_top_k : aggregate_to_topk? is_max_k? k recall_target? reduction_dimension
  reduction_input_size_override?
reduce_window_sum reduce_window_max reduce_window_min :
  base_dilation padding window_dilation window_dimensions window_strides
reduce_window : base_dilation consts jaxpr padding window_dilation window_dimensions window_strides
select_and_scatter_add : padding select_prim? window_dimensions window_strides
select_and_gather_add :
  base_dilation padding select_prim? window_dilation window_dimensions window_strides
fft : fft_lengths fft_type

einsum : operands result
einsum_part : equation
dot_general : dimension_numbers out_sharding? precision? preferred_element_type?
ragged_dot ragged_dot_general : group_offset out_sharding? precision? preferred_element_type?
  ragged_dot_dimension_numbers
conv_general_dilated : batch_group_count dimension_numbers feature_group_count lhs_dilation
  out_sharding? padding precision? preferred_element_type? rhs_dilation window_strides

lu cholesky cholesky_update householder_product hessenberg :
qr : full_matrices pivoting use_magma?
eigh : algorithm? lower? sort_eigenvalues? subset_by_index
eig : compute_left_eigenvectors compute_right_eigenvectors enable_eigvec_derivs? implementation?
  use_magma?
svd : algorithm? compute_uv full_matrices subset_by_index
schur : compute_schur_vectors select_callable? sort_eig_vals?
triangular_solve : conjugate_a left_side lower transpose_a unit_diagonal
tridiagonal : lower?
tridiagonal_solve : perturb_singular?
symmetric_product : alpha beta

jit pjit : compiler_options_kvs? ctx_mesh? donated_invars? in_layouts? in_shardings? inline? jaxpr
  keep_unused? name out_layouts? out_shardings?
closed_call core_call : call_jaxpr name?
remat2 : differentiated? jaxpr policy? prevent_cse?
custom_jvp_call : call_jaxpr jvp_jaxpr_fun? num_consts? symbolic_zeros?
custom_vjp_call : bwd? call_jaxpr fwd_jaxpr_thunk? num_consts? out_trees? symbolic_zeros?
custom_vjp_call_jaxpr : bwd? fun_jaxpr fwd_jaxpr_thunk? num_consts? out_trees? symbolic_zeros?
custom_vmap_call : call in_tree? out_tree? rule?
custom_lin : bwd? in_zeros? num_res? out_avals? symbolic_zeros?
custom_linear_solve : const_lengths? jaxprs?
linear_call : callee num_callee_consts num_res transpose_thunk?
composite : attributes? call_jaxpr? jaxpr? name version?
run_state : is_initialized jaxpr which_linear?
scan : _split_transpose? ft_in? ft_out? jaxpr length linear? num_carry? num_consts? reverse? unroll?
while : body_jaxpr body_nconsts cond_jaxpr cond_nconsts
cond : branches branches_platforms?
platform_index : platforms?
shard_map : check_vma? in_specs jaxpr manual_axes? mesh? newly_manual_axes? out_specs
xla_pmap : axis_name? axis_size? backend? call_jaxpr devices? donated_invars? global_axis_size?
  in_axes? is_explicit_global_axis_size? name? out_axes?

psum pmax pmin psum2 psum_invariant pvary preduced unreduced_psum unreduced_pmax unreduced_pmin
vary_unreduced_cast vary_unreduced_cast_p reduced_vary_cast : axes axis_index_groups?
all_gather all_gather_invariant all_gather_reduced :
  all_gather_dimension axis_index_groups? axis_name axis_size tiled
reduce_scatter unreduced_reduce_scatter :
  axis_index_groups? axis_name axis_size scatter_dimension tiled
ppermute : axis_name perm?
pbroadcast : axis_name source
all_to_all : axis_index_groups? axis_name concat_axis split_axis tiled
ragged_all_to_all : axis_index_groups? axis_name
axis_index : axis_name

debug_callback : callback? effect? ordered? partitioned?
debug_print : fmt? has_placeholders? in_tree? logging_record? np_printoptions? ordered? partitioned?
  static_args?
pure_callback : callback? result_avals? sharding? vmap_method?
io_callback : callback? ordered? result_avals? sharding?
pallas_call : backend? compiler_params? cost_estimate? debug? grid_mapping? input_output_aliases?
  interpret? jaxpr? mesh? metadata? name? out_avals?
new_ref : kind? memory_space? pin?
get swap addupdate : tree
check : debug? err_tree?
call_exported : exported

select_if_vmap unvmap_any unvmap_all unvmap_max :
nonbatchable : allow_constant_across_batch? msg?
nondifferentiable_backward : msg? symbolic?
nontraceable : name?
maybe_set : i_static i_treedef kwargs makes_false_steps
noinline : flatten static treedef
announce_jaxpr : announce? intermediates? name? stack?
"""


def _parsed(table: str) -> dict[str, list[str]]:
    # A row begins with a line that is not indented, and may have more than one line before its ":".
    parameters: dict[str, list[str]] = {}
    heads, *rest = table.replace("\n  ", " ").split(":")
    for text in rest:
        *of_these, following = text.split("\n", 1)
        parameters.update({name: of_these[0].split() for name in heads.split()})
        heads = following
    return parameters


_ROWS = _parsed(_TABLE)
PARAMETERS = {name: frozenset(p.rstrip("?") for p in row) for name, row in _ROWS.items()}
_REQUIRED = {name: frozenset(p for p in row if p[-1] != "?") for name, row in _ROWS.items()}
