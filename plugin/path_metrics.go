package plugin

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// metricsContentType is that of Prometheus' text format.
const metricsContentType = "text/plain; version=0.0.4"

func (b *backend) metricsPaths() []*framework.Path {
	return []*framework.Path{{
		Pattern:      "metrics/?$",
		Callbacks:    map[logical.Operation]framework.OperationFunc{logical.ReadOperation: b.pathMetricsRead},
		HelpSynopsis: "Metrics in Prometheus' text format.",
		HelpDescription: `
What an external plugin measures does not reach sys/metrics, so it stands here. The
answer is text, not JSON: let Prometheus scrape it with a token, or use curl.
Counters begin at zero with the plugin's process, on each node; what is now is read
when it is asked for.`,
	}}
}

func (b *backend) pathMetricsRead(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	if err := b.loadOperations(ctx, req.Storage); err != nil {
		return nil, err
	}
	waiting, err := listStored(ctx, req.Storage, prefixRevocation)
	if err != nil {
		return nil, err
	}
	families, err := prometheus.Gatherers{b.metrics.registry, b.metricsNow(len(waiting))}.Gather()
	if err != nil {
		return nil, fmt.Errorf("gather metrics: %w", err)
	}
	var text bytes.Buffer
	encoder := expfmt.NewEncoder(&text, expfmt.NewFormat(expfmt.TypeTextPlain))
	for _, family := range families {
		if err := encoder.Encode(family); err != nil {
			return nil, fmt.Errorf("write metrics: %w", err)
		}
	}
	return &logical.Response{Data: map[string]any{
		logical.HTTPContentType: metricsContentType,
		logical.HTTPRawBody:     text.Bytes(),
		logical.HTTPStatusCode:  http.StatusOK,
	}}, nil
}

// metricsNow is how things stand, apart from what was counted.
func (b *backend) metricsNow(waiting int) *prometheus.Registry {
	registry := prometheus.NewRegistry()
	gauge := func(name, help string, label string) func(value string, n int) {
		var labels []string
		if label != "" {
			labels = []string{label}
		}
		vec := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
		registry.MustRegister(vec)
		return func(value string, n int) {
			if label == "" {
				vec.WithLabelValues().Set(float64(n))
				return
			}
			vec.WithLabelValues(value).Set(float64(n))
		}
	}
	gauge("dbops_revocations_waiting", "Logins that could not be ended yet.", "")("", waiting)
	gauge("dbops_accounts", "Logins that exist or may exist.", "")("", b.accounts.index.size())

	states := map[wire.State]int{}
	for _, r := range b.ops.busyOperations() {
		states[r.State]++
	}
	operations := gauge("dbops_operations", "Operations that have not ended.", "state")
	for _, state := range wire.States() {
		if !state.Final() {
			operations(string(state), states[state])
		}
	}

	heard, lost := 0, 0
	for _, a := range b.postureAgents() {
		if !a.Heard.IsZero() && b.now().Sub(a.Heard) <= a.Grace {
			heard++
		} else {
			lost++
		}
	}
	agents := gauge("dbops_agents", "Registered agents; lost are those not heard within their grace.", "state")
	agents("heard", heard)
	agents("lost", lost)

	due, overdue := b.rotations.waiting()
	rotations := gauge("dbops_rotations_waiting", "Rotations that are due; overdue are those that failed or are late by 5 minutes.", "state")
	rotations("due", due)
	rotations("overdue", overdue)
	return registry
}

// lateRotation is how late a rotation is overdue.
const lateRotation = 5 * time.Minute

// waiting counts the rotations that are due, and of those the ones that have
// failed or are late.
func (q *rotationQueue) waiting() (due, overdue int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := q.now()
	for _, item := range q.timetable.items {
		late := now.Sub(item.due)
		if late >= 0 || item.attempts > 0 {
			due++
		}
		if late > lateRotation || item.attempts > 0 {
			overdue++
		}
	}
	return due, overdue
}
