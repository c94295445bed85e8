package plugin

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/policy"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Words of metrics' labels.
const (
	metricSucceeded = "succeeded"
	metricFailed    = "failed"
	metricAllowed   = "allowed"
	metricDenied    = "denied"
	useCreds        = "creds"     // asked for by creds/
	useOperation    = "operation" // asked for by an agent
)

// metrics counts what this instance has done. Counters begin at zero with the
// process and are in memory only; what is now is read when it is asked for. Labels
// take values from fixed lists, so the number of series has a bound, and every one
// of them is there from the start, so that its first event is an increase.
type metrics struct {
	registry *prometheus.Registry

	requested *prometheus.CounterVec   // kind
	finished  *prometheus.CounterVec   // kind, outcome
	lasted    *prometheus.HistogramVec // kind
	decisions *prometheus.CounterVec   // outcome, rule
	refusals  *prometheus.CounterVec   // code
	rotations *prometheus.CounterVec   // what, outcome
	ended     *prometheus.CounterVec   // outcome
	changes   prometheus.Counter
	pruned    prometheus.Counter

	// Found without a lock: creds/ is a hot path.
	issued  map[issuedLabels]prometheus.Counter
	created map[wire.EngineType]prometheus.Observer
}

type issuedLabels struct {
	engine       wire.EngineType
	use, outcome string
}

func newMetrics(version string) *metrics {
	m := &metrics{registry: prometheus.NewRegistry(), issued: map[issuedLabels]prometheus.Counter{}, created: map[wire.EngineType]prometheus.Observer{}}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
		m.registry.MustRegister(c)
		return c
	}
	histogram := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		h := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)
		m.registry.MustRegister(h)
		return h
	}
	info := prometheus.NewGauge(prometheus.GaugeOpts{Name: "dbops_info", Help: "1; the version stands in the label.", ConstLabels: prometheus.Labels{"version": version}})
	info.Set(1)
	m.changes = prometheus.NewCounter(prometheus.CounterOpts{Name: "dbops_policy_changes_total", Help: "Policies written or deleted."})
	m.pruned = prometheus.NewCounter(prometheus.CounterOpts{Name: "dbops_operations_pruned_total", Help: "Operations removed because their retention was over."})
	m.registry.MustRegister(info, m.changes, m.pruned)
	m.requested = counter("dbops_operations_requested_total", "Operations admitted.", "kind")
	m.finished = counter("dbops_operations_finished_total", "Operations that ended.", "kind", "outcome")
	m.lasted = histogram("dbops_operation_duration_seconds", "From request to end.", []float64{1, 5, 15, 60, 300, 900, 3600, 4 * 3600}, "kind")
	m.decisions = counter("dbops_decisions_total", "Decisions of policies on requests and plans; the rule of a refusal.", "outcome", "rule")
	m.refusals = counter("dbops_refusals_total", "Requests refused, for whatever reason.", "code")
	m.rotations = counter("dbops_rotations_total", "Rotations of static roles and of connections' own users.", "what", "outcome")
	m.ended = counter("dbops_accounts_ended_total", "Attempts to end a login.", "outcome")
	issued := counter("dbops_accounts_issued_total", "Logins asked for; creds is creds/, operation an agent.", "engine", "use", "outcome")
	created := histogram("dbops_account_creation_seconds", "How long the database took to make a login.", []float64{0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10}, "engine")

	for _, kind := range wire.Kinds() {
		m.requested.WithLabelValues(string(kind))
		m.lasted.WithLabelValues(string(kind))
		for _, state := range wire.States() {
			if state.Final() {
				m.finished.WithLabelValues(string(kind), string(state))
			}
		}
	}
	m.decisions.WithLabelValues(metricAllowed, "")
	for _, rule := range policy.Rules() {
		m.decisions.WithLabelValues(metricDenied, rule)
	}
	for _, code := range wire.Codes() {
		m.refusals.WithLabelValues(string(code))
	}
	for _, outcome := range []string{metricSucceeded, metricFailed} {
		m.ended.WithLabelValues(outcome)
		for _, what := range []string{"root", "static_role"} {
			m.rotations.WithLabelValues(what, outcome)
		}
		for _, p := range products() {
			m.created[p.engine] = created.WithLabelValues(string(p.engine))
			for _, use := range []string{useCreds, useOperation} {
				m.issued[issuedLabels{p.engine, use, outcome}] = issued.WithLabelValues(string(p.engine), use, outcome)
			}
		}
	}
	return m
}

func metricOutcome(err error) string {
	if err != nil {
		return metricFailed
	}
	return metricSucceeded
}

// accountIssued counts a login that the database was asked to make.
func (m *metrics) accountIssued(engine wire.EngineType, operationID string, took time.Duration, err error) {
	use := useCreds
	if operationID != "" {
		use = useOperation
	}
	m.issued[issuedLabels{engine, use, metricOutcome(err)}].Inc()
	m.created[engine].Observe(took.Seconds())
}

// accountEnded counts an attempt to end a login.
func (m *metrics) accountEnded(err error) { m.ended.WithLabelValues(metricOutcome(err)).Inc() }

// rotated counts a rotation that was tried.
func (m *metrics) rotated(key rotationKey, err error) {
	what := "static_role"
	if key.root {
		what = "root"
	}
	m.rotations.WithLabelValues(what, metricOutcome(err)).Inc()
}

// decided counts a decision.
func (m *metrics) decided(d wire.Decision) {
	if d.Allowed {
		m.decisions.WithLabelValues(metricAllowed, "").Inc()
		return
	}
	m.decisions.WithLabelValues(metricDenied, d.Rule).Inc()
}

// refused counts an answer that is a refusal.
func (m *metrics) refused(e *wire.Error) { m.refusals.WithLabelValues(string(e.Code)).Inc() }

// moved counts an operation whose state was changed.
func (m *metrics) moved(before, after *operationRecord, now time.Time) {
	if before.State.Final() || !after.State.Final() {
		return
	}
	m.finished.WithLabelValues(string(after.Kind), string(after.State)).Inc()
	m.lasted.WithLabelValues(string(after.Kind)).Observe(max(0, now.Sub(after.CreatedAt)).Seconds())
}
