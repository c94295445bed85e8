package worker

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/time/rate"
)

// Limits on what a worker may write into the agent's log.
const (
	logLineBytes    = 64 << 10 // longer lines are cut
	logLinesPerSec  = 20
	logLinesAtOnce  = 200
	logDroppedEvery = time.Minute
)

// copyLog reads the worker's log lines to their end and writes them to log. A
// worker is not trusted: lines are bounded in length and number. What is no line
// of ours is the runtime's last words; of those the stacks are kept and the text
// of the panic, which may quote data, is not.
func copyLog(in io.Reader, log hclog.Logger) {
	lines := bufio.NewReaderSize(in, logLineBytes)
	limit := rate.NewLimiter(logLinesPerSec, logLinesAtOnce)
	dropped, warn := 0, rate.Sometimes{First: 1, Interval: logDroppedEvery}
	dying := false
	for {
		line, err := lines.ReadSlice('\n')
		cut := errors.Is(err, bufio.ErrBufferFull)
		text := strings.TrimRight(string(line), "\r\n")
		switch {
		case text == "":
		case !limit.Allow():
			dropped++
			warn.Do(func() { log.Warn("worker writes too many log lines; some are dropped", "dropped", dropped) })
		case !cut && logEntry(text, log):
		case dying:
			log.Error("worker crashed", "line", plain(text))
		case strings.HasPrefix(text, "panic:") || strings.HasPrefix(text, "fatal error:"):
			log.Error("worker crashed")
		case strings.HasPrefix(text, "goroutine "):
			dying = true
			log.Error("worker crashed", "line", plain(text))
		}
		for errors.Is(err, bufio.ErrBufferFull) {
			_, err = lines.ReadSlice('\n')
		}
		if err != nil {
			return // the stream's end is the sandbox's matter
		}
	}
}

// logEntry logs a line written by the worker's own logger and reports whether it
// was one.
func logEntry(line string, log hclog.Logger) bool {
	var entry map[string]any
	if err := json.Unmarshal([]byte(line), &entry); err != nil {
		return false
	}
	message, ok := entry["@message"].(string)
	level, ok2 := entry["@level"].(string)
	if !ok || !ok2 {
		return false
	}
	args := make([]any, 0, 4)
	for _, key := range []string{"error", "stack", "address", "pid"} {
		switch value := entry[key].(type) {
		case string:
			args = append(args, key, plain(value))
		case float64:
			args = append(args, key, value)
		}
	}
	log.Log(hclog.LevelFromString(level), plain(message), args...)
	return true
}
