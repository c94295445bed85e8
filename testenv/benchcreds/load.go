package main

import (
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/vault/api"
)

// load is what each client does, again and again.
type load string

const (
	create       load = "create"
	createRevoke load = "create+revoke"
)

// samples are the times of single requests and of what they were part of.
type samples struct {
	took    []time.Duration
	elapsed time.Duration
	failed  int
}

// perSecond is the throughput.
func (s *samples) perSecond() float64 {
	if s.elapsed == 0 {
		return 0
	}
	return float64(len(s.took)) / s.elapsed.Seconds()
}

// quantile is the time that a share q of the requests took at most.
func (s *samples) quantile(q float64) time.Duration {
	if len(s.took) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(s.took))
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

// run repeats f with so many clients at once for d.
func (s *samples) run(clients int, d time.Duration, f func(client int) error) (failure error) {
	var mu sync.Mutex
	var group sync.WaitGroup
	began := time.Now()
	end := began.Add(d)
	for client := range clients {
		group.Go(func() {
			var took []time.Duration
			var failed int
			var last error
			for time.Now().Before(end) {
				at := time.Now()
				if err := f(client); err != nil {
					failed, last = failed+1, err
					continue
				}
				took = append(took, time.Since(at))
			}
			mu.Lock()
			defer mu.Unlock()
			s.took = append(s.took, took...)
			s.failed += failed
			if last != nil {
				failure = last
			}
		})
	}
	group.Wait()
	s.elapsed += time.Since(began)
	return failure
}

// cellResult is one engine under one load with so many clients.
type cellResult struct {
	samples

	engine  *engine
	clients int
	load    load
	used    processorTime
}

func (s *stand) measure(c *cellResult) {
	before := s.processorTime()
	err := c.run(c.clients, s.cell, func(client int) error { return c.once(s.clients[client]) })
	c.used = c.used.plus(s.processorTime().minus(before))
	if err != nil {
		s.t.Logf("%s, %s, %d clients: %d requests failed, the last with: %v", c.engine.name, c.load, c.clients, c.failed, err)
	}
}

func (c *cellResult) once(client *api.Client) error {
	lease, err := c.engine.create(client)
	if err != nil || c.load == create {
		return err
	}
	return revoke(client, lease)
}
