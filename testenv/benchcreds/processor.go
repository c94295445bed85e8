package main

import (
	"fmt"
	"syscall"
	"time"

	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

// processorTime is what each program has used since it started.
type processorTime struct{ vault, plugin, database, client time.Duration }

func (a processorTime) plus(b processorTime) processorTime {
	return processorTime{vault: a.vault + b.vault, plugin: a.plugin + b.plugin, database: a.database + b.database, client: a.client + b.client}
}

func (a processorTime) minus(b processorTime) processorTime {
	return a.plus(processorTime{vault: -b.vault, plugin: -b.plugin, database: -b.database, client: -b.client})
}

// per tells the time of one request, in milliseconds.
func (a processorTime) per(requests int) string {
	if requests == 0 {
		return notMeasured
	}
	one := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) / float64(requests) }
	return fmt.Sprintf("%5.2f %5.2f %5.2f %5.2f", one(a.vault), one(a.plugin), one(a.database), one(a.client))
}

// processorTime reads the clocks of all programs that take part, PostgreSQL being
// the database.
func (s *stand) processorTime() processorTime {
	var own syscall.Rusage
	s.must(syscall.Getrusage(syscall.RUSAGE_SELF, &own), "read own processor time")
	return processorTime{
		vault: testenv.ProcessorTime(s.t, s.vault.Nodes[0].PID()), plugin: testenv.ProcessorTime(s.t, s.plugin),
		database: s.postgres.ProcessorTime(), client: time.Duration(own.Utime.Nano() + own.Stime.Nano()),
	}
}
