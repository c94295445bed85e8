package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Now is how things stand, read at each scrape.
type Now struct {
	Claims           map[wire.Phase]int // at work
	Unclaimed        int                // of the last start, not given back yet
	Slots, FreeSlots int
	AuditDevices     int

	EventsWaiting, EventsWaitingBytes int
	EventsOldest                      time.Duration
	EventsRecorded, EventsRefused     uint64
}

// Watch makes scrapes ask read how things stand; before, everything is zero. It must
// be quick: it may take locks, and reads neither Vault nor disks.
func (m *Metrics) Watch(read func() Now) { m.now.Store(&read) }

// standing is the collector of what is now.
type standing struct {
	metrics *Metrics

	operations, unclaimed, slots, freeSlots, devices, poll *prometheus.Desc
	waiting, waitingBytes, oldest, recorded, refused       *prometheus.Desc
}

var _ prometheus.Collector = (*standing)(nil)

func (m *Metrics) standing() *standing {
	describe := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("dbops_agent_"+name, help, labels, nil)
	}
	return &standing{
		metrics:      m,
		operations:   describe("operations", "Operations at work.", "phase"),
		unclaimed:    describe("operations_unclaimed", "Operations of the last start whose claims were not given back yet."),
		slots:        describe("slots", "Operations that may be at work at once."),
		freeSlots:    describe("slots_free", "Operations that would be taken now; 0 also while no audit device records, no image is made, or the agent ends."),
		devices:      describe("audit_devices", "Audit devices that record events; without one no operation starts."),
		poll:         describe("last_poll_age_seconds", "Since Vault answered a poll, or since the start."),
		waiting:      describe("events_waiting", "Events that Vault has not taken yet."),
		waitingBytes: describe("events_waiting_bytes", "Size of the events that Vault has not taken yet."),
		oldest:       describe("events_oldest_seconds", "How long the first of the waiting events has waited."),
		recorded:     describe("events_recorded_total", "Events written to the spool, those found in it included."),
		refused:      describe("events_refused_total", "Events set aside because Vault never takes them: they miss the record."),
	}
}

// Describe tells what Collect collects.
func (s *standing) Describe(out chan<- *prometheus.Desc) { prometheus.DescribeByCollect(s, out) }

// Collect reads once, so that one scrape fits together.
func (s *standing) Collect(out chan<- prometheus.Metric) {
	var now Now
	if read := s.metrics.now.Load(); read != nil {
		now = (*read)()
	}
	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
	}
	for _, phase := range []wire.Phase{wire.PhasePlanning, wire.PhaseRunning, wire.PhaseCleanup} {
		gauge(s.operations, float64(now.Claims[phase]), string(phase))
	}
	gauge(s.unclaimed, float64(now.Unclaimed))
	gauge(s.slots, float64(now.Slots))
	gauge(s.freeSlots, float64(now.FreeSlots))
	gauge(s.devices, float64(now.AuditDevices))
	gauge(s.poll, max(0, time.Since(*s.metrics.polled.Load())).Seconds())
	gauge(s.waiting, float64(now.EventsWaiting))
	gauge(s.waitingBytes, float64(now.EventsWaitingBytes))
	gauge(s.oldest, now.EventsOldest.Seconds())
	out <- prometheus.MustNewConstMetric(s.recorded, prometheus.CounterValue, float64(now.EventsRecorded))
	out <- prometheus.MustNewConstMetric(s.refused, prometheus.CounterValue, float64(now.EventsRefused))
}
