package metrics

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/operation"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Words of labels.
const (
	succeeded = "succeeded"
	failed    = "failed"
	other     = "other" // in place of a word that is on no list of this version
)

// Metrics are the agent's. Counters begin at zero with the process. It is safe for
// concurrent use and never blocks.
type Metrics struct {
	registry *prometheus.Registry
	now      atomic.Pointer[func() Now]
	polled   atomic.Pointer[time.Time] // begins with the process

	operations *prometheus.CounterVec   // kind, outcome
	failures   *prometheus.CounterVec   // code
	failedAt   *prometheus.CounterVec   // step
	steps      *prometheus.HistogramVec // step
	workers    *prometheus.CounterVec   // outcome
	died       *prometheus.CounterVec   // reason
	leftovers  *prometheus.CounterVec   // outcome
	requests   *prometheus.CounterVec   // outcome
	refusals   *prometheus.CounterVec   // code
	logins     *prometheus.CounterVec   // outcome
	renewals   *prometheus.CounterVec   // outcome
}

// New makes the metrics of an agent of this version.
func New(version string) *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry()}
	started := time.Now()
	m.polled.Store(&started)
	info := prometheus.NewGauge(prometheus.GaugeOpts{Name: "dbops_agent_info", Help: "1; the version stands in the label.", ConstLabels: prometheus.Labels{"version": version}})
	info.Set(1)
	m.registry.MustRegister(info, m.standing(), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))

	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
		m.registry.MustRegister(c)
		return c
	}
	m.operations = counter("dbops_agent_operations_total", "Claims whose work has ended.", "kind", "outcome")
	m.failures = counter("dbops_agent_operation_failures_total", "Operations that ended as failed, by code.", "code")
	m.failedAt = counter("dbops_agent_operation_failed_steps_total", "Operations that ended as failed, by the step they failed in.", "step")
	m.workers = counter("dbops_agent_workers_started_total", "Sandboxes asked for.", "outcome")
	m.died = counter("dbops_agent_workers_died_total", "Workers that ended while they were needed.", "reason")
	m.leftovers = counter("dbops_agent_sandbox_leftovers_total", "Sandboxes found that belong to no work.", "outcome")
	m.requests = counter("dbops_agent_vault_requests_total", "Requests to Vault.", "outcome")
	m.refusals = counter("dbops_agent_vault_failures_total", "Requests that Vault refused or could not answer, by code.", "code")
	m.logins = counter("dbops_agent_logins_total", "Logins to Vault.", "outcome")
	m.renewals = counter("dbops_agent_token_renewals_total", "Renewals of the agent's own token.", "outcome")
	m.steps = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "dbops_agent_step_duration_seconds", Help: "How long a step took that was done.",
		Buckets: []float64{0.05, 0.25, 1, 5, 15, 60, 300, 900, 3600, 4 * 3600},
	}, []string{"step"})
	m.registry.MustRegister(m.steps)
	m.begin()
	return m
}

// begin makes every series there is.
func (m *Metrics) begin() {
	for _, kind := range wire.Kinds() {
		for _, outcome := range operation.Outcomes() {
			m.operations.WithLabelValues(string(kind), string(outcome))
		}
	}
	for _, code := range append(wire.Codes(), other) {
		m.failures.WithLabelValues(string(code))
		m.refusals.WithLabelValues(string(code))
	}
	for _, step := range append(wire.Steps(), other) {
		m.failedAt.WithLabelValues(string(step))
		m.steps.WithLabelValues(string(step))
	}
	for _, outcome := range []string{succeeded, failed} {
		for _, vec := range []*prometheus.CounterVec{m.workers, m.requests, m.logins, m.renewals} {
			vec.WithLabelValues(outcome)
		}
	}
	for _, reason := range []string{"exit", "memory"} {
		m.died.WithLabelValues(reason)
	}
	for _, outcome := range []string{"removed", "left"} {
		m.leftovers.WithLabelValues(outcome)
	}
}
