package testenv

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/docker/docker/api/types/container"
)

// ProcessorTime is the processor time that a process, without its children, has
// used since it started, in steps of 10 ms.
func ProcessorTime(t TB, pid int) time.Duration {
	t.Helper()
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatalf("read processor time: %v", err)
	}
	// Behind the name of the program, which may hold anything, fields 3 and on.
	fields := bytes.Fields(content[bytes.LastIndexByte(content, ')')+1:])
	const userTime, systemTime = 14 - 3, 15 - 3
	var ticks int64
	for _, field := range []int{userTime, systemTime} {
		n, err := strconv.ParseInt(string(fields[field]), 10, 64)
		if err != nil {
			t.Fatalf("read processor time: %v", err)
		}
		ticks += n
	}
	const tick = 10 * time.Millisecond // USER_HZ is 100 on every Linux
	return time.Duration(ticks) * tick
}

// ProcessorTime is the processor time that the server's container has used.
func (s *server) ProcessorTime() time.Duration {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	answer, err := s.docker.ContainerStatsOneShot(ctx, s.ID)
	if err != nil {
		s.t.Fatalf("read processor time of %s: %v", s.part, err)
	}
	defer answer.Body.Close()
	var stats container.StatsResponse
	if err := json.NewDecoder(answer.Body).Decode(&stats); err != nil {
		s.t.Fatalf("read processor time of %s: %v", s.part, err)
	}
	return time.Duration(stats.CPUStats.CPUUsage.TotalUsage)
}
