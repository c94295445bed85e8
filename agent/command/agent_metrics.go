package command

import (
	"context"

	"github.com/hashicorp/go-hclog"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/audit"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/config"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/metrics"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/runner"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/vault"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

var (
	_ runner.Observer = (*metrics.Metrics)(nil)
	_ vault.Observer  = (*metrics.Metrics)(nil)
)

// serveMetrics answers scrapes until stop, where the configuration says so. It comes
// before the login: an agent that cannot log in is what somebody should see.
func serveMetrics(ctx context.Context, telemetry *config.Telemetry, m *metrics.Metrics, log hclog.Logger) (stop func(), err error) {
	if telemetry == nil {
		return func() {}, nil
	}
	network, address, err := telemetry.Address()
	if err != nil {
		return nil, &wire.Error{Code: wire.CodeConfig, Field: "telemetry.listen", Reason: err.Error()}
	}
	listener, err := metrics.Listen(ctx, network, address)
	if err != nil {
		return nil, &wire.Error{Code: wire.CodeConfig, Field: "telemetry.listen", Reason: err.Error(), Hint: "choose another one, or leave the block out"}
	}
	serving, end := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		m.Serve(serving, listener, log)
	}()
	return func() {
		end()
		<-ended
	}, nil
}

// standing puts together what is told at a scrape.
func standing(worker *runner.Runner, sink *audit.Sink, watch *audit.Watch) metrics.Now {
	work, events := worker.Status(), sink.Backlog()
	return metrics.Now{
		Claims: work.Claims, Unclaimed: work.Unclaimed, Slots: work.Slots, FreeSlots: work.FreeSlots, AuditDevices: max(0, watch.Count()),
		EventsWaiting: events.Events, EventsWaitingBytes: events.Bytes, EventsOldest: events.Oldest,
		EventsRecorded: events.Recorded, EventsRefused: events.Refused,
	}
}
