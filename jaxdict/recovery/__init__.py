"""When a sparse autoencoder recovers the features behind superposed inputs, and what reweighting changes (theory.md section 6)."""

from jaxdict.recovery.autoencoders import (
    Autoencoder,
    Matching,
    assignment,
    errors_by_dimension,
    ground_truth_loss,
    penalty_term,
    reconstruction_loss,
)
from jaxdict.recovery.benchmarks import (
    BenchMetrics,
    BenchSums,
    EdgeAbsorption,
    bench_absorption,
    bench_metrics,
    bench_metrics_from_sums,
    bench_sums,
)
from jaxdict.recovery.closed_forms import (
    GLOBAL_MINIMISER,
    NOT_STATIONARY,
    STATIONARY_NOT_MINIMAL,
    UNREFUTED,
    Verdict,
    closed_form,
    judge,
)
from jaxdict.recovery.digons import (
    DigonRates,
    LossGaps,
    digon_output,
    digon_rates,
    loss_gaps,
    recovery_rate,
    simulated_rates,
)
from jaxdict.recovery.ground_truth import Features, sparse_features, stratified_features
from jaxdict.recovery.measures import Agreement, agreement, alignment, average_active, row_distance
from jaxdict.recovery.reweighting import (
    dimension_variance,
    label_numbers,
    learned_metric,
    metric_from,
    reweight,
    semantic_consistency,
)
from jaxdict.recovery.superpositions import (
    LearnedSuperposition,
    block_map,
    digon_map,
    dimensions_per_feature,
    identity_map,
    learned_map,
    polygon_map,
    random_map,
    single_feature_error,
    superpose,
    tetrahedron_map,
)
from jaxdict.recovery.sweeps import Recovery, recover, sweep_recovery
from jaxdict.recovery.training import Trained, train, train_batch
