package command

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/operation"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// barView shows one line per state and step and, below them, a bar with bytes,
// rows, tables, rate and the time left.
type barView struct {
	out  io.Writer
	at   vaultFlags
	now  func() time.Time
	bars *mpb.Progress
	bar  *mpb.Bar

	mu    sync.Mutex // the bar is drawn by another goroutine
	op    wire.Operation
	seen  bool
	meter meter
}

var _ followView = (*barView)(nil)

func newBarView(out io.Writer, at vaultFlags, now func() time.Time) *barView {
	v := &barView{out: out, at: at, now: now}
	v.bars = mpb.New(mpb.WithOutput(out), mpb.WithWidth(30), mpb.WithAutoRefresh())
	v.bar = v.bars.New(0, mpb.BarStyle(),
		mpb.PrependDecorators(decor.Any(func(decor.Statistics) string { return v.left() })),
		mpb.AppendDecorators(decor.Any(func(decor.Statistics) string { return v.right() })),
	)
	return v
}

// left is what stands before the bar.
func (v *barView) left() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	word := string(v.op.State)
	if p := v.op.Progress; p != nil && p.Step != "" {
		word = string(p.Step)
	}
	return fmt.Sprintf("  %-10s", plain(word))
}

// right is what stands behind it.
func (v *barView) right() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return progressText(v.op.Progress, &v.meter)
}

// progressText is progress in words, e.g.
// " 41 MiB/s  3/8 tables  1200000 rows  120.4 MiB of ~300.0 MiB  4s left".
func progressText(p *wire.Progress, m *meter) string {
	if p == nil {
		return ""
	}
	var words []string
	if p.TablesTotal > 0 {
		words = append(words, fmt.Sprintf("%d/%d tables", p.TablesDone, p.TablesTotal))
	}
	if p.Rows > 0 {
		words = append(words, fmt.Sprintf("%d rows", p.Rows))
	}
	if p.Bytes > 0 {
		size := sizeText(p.Bytes)
		if p.BytesTotal > p.Bytes {
			size += " of ~" + sizeText(p.BytesTotal)
		}
		words = append(words, size)
	}
	if rate := m.perSecond(); rate >= 1024 {
		words = append(words, sizeText(int64(rate))+"/s")
		if left, known := m.left(p.BytesTotal); known {
			words = append(words, left.Round(time.Second).String()+" left")
		}
	}
	return " " + strings.Join(words, "  ")
}

// Update draws the new state of things.
func (v *barView) Update(op wire.Operation) {
	v.mu.Lock()
	before, first := v.op, !v.seen
	v.op, v.seen = op, true
	if p := op.Progress; p != nil {
		v.meter.add(v.now(), p.Bytes)
	}
	v.mu.Unlock()

	if first {
		v.print("%s  %s → %s", op.ID, op.Source, op.Target)
		v.print("  decision   %s", decisionText(op.Decision))
	}
	if first || before.State != op.State {
		line := fmt.Sprintf("  %-10s", op.State)
		if op.Agent != "" {
			line += " by " + op.Agent
		}
		v.print("%s", line)
	}
	if needs := needsText(op); needs != "" && (first || needs != needsText(before)) {
		v.print("    %s", needs)
	}
	if p := op.Progress; p != nil && p.Step != "" && (before.Progress == nil || before.Progress.Step != p.Step) {
		v.print("    step     %s", p.Step)
	}
	if p := op.Progress; p != nil {
		// The total is an estimate from sizes on disk: it never ends the bar.
		v.bar.SetTotal(max(p.BytesTotal, p.Bytes+1), false)
		v.bar.SetCurrent(p.Bytes)
	}
}

// print writes a line above the bar, whoever chose its words.
func (v *barView) print(format string, args ...any) {
	// A terminal that is gone is no reason to stop following.
	_, _ = fmt.Fprintln(v.bars, plain(fmt.Sprintf(format, args...)))
}

// Note prints a line.
func (v *barView) Note(text string) { v.print("  %s", text) }

// Leave removes the bar.
func (v *barView) Leave() {
	v.bar.Abort(true)
	v.bars.Wait()
}

// Finish replaces the bar by the result.
func (v *barView) Finish(op wire.Operation, report *operation.Report, _ int) {
	v.Leave()
	printOperation(v.out, v.at, op, report)
}
