package command

import (
	"time"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/operation"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// jsonView prints one JSON object a line: for each change of state, of step and
// of progress, and a last one with the result.
type jsonView struct {
	console *console
	now     func() time.Time
	seen    bool
	last    wire.Operation
}

var _ followView = (*jsonView)(nil)

// followLine is one such object.
type followLine struct {
	Type        string         `json:"type"` // state, step, progress, note or result
	Time        time.Time      `json:"time"`
	OperationID string         `json:"operation_id,omitempty"`
	State       wire.State     `json:"state,omitempty"`
	Step        wire.Step      `json:"step,omitempty"`
	Agent       string         `json:"agent,omitempty"`
	Decision    *wire.Decision `json:"decision,omitempty"`
	// Needs says whose approval it waits for.
	Needs     []wire.ApprovalStatus `json:"approval_needs,omitempty"`
	NotBefore time.Time             `json:"not_before,omitzero"` // allowed_hours let it run
	Progress  *wire.Progress        `json:"progress,omitempty"`
	Note      string                `json:"note,omitempty"`
	Operation *wire.Operation       `json:"operation,omitempty"`
	Report    *operation.Report     `json:"report,omitempty"`
	Exit      *int                  `json:"exit,omitempty"`
}

func (v *jsonView) line(l followLine) {
	l.Time = v.now().UTC()
	v.console.printJSON(l)
}

// Update prints what changed since the last look.
func (v *jsonView) Update(op wire.Operation) {
	if !v.seen || op.State != v.last.State || needsText(op) != needsText(v.last) {
		l := followLine{Type: "state", OperationID: op.ID, State: op.State, Agent: op.Agent, NotBefore: op.NotBefore}
		if op.State == wire.StateAwaitingApproval {
			l.Needs = op.ApprovalNeeds
		}
		if !v.seen || op.Decision.Reason != v.last.Decision.Reason {
			l.Decision = &op.Decision
		}
		v.line(l)
	}
	if p := op.Progress; p != nil {
		before := v.last.Progress
		if before == nil || before.Step != p.Step {
			v.line(followLine{Type: "step", OperationID: op.ID, State: op.State, Step: p.Step})
		}
		if before == nil || *before != *p {
			v.line(followLine{Type: "progress", OperationID: op.ID, Step: p.Step, Progress: p})
		}
	}
	v.seen, v.last = true, op
}

// Note prints a line of type note.
func (v *jsonView) Note(text string) {
	v.line(followLine{Type: "note", OperationID: v.last.ID, Note: text})
}

// Finish prints the result.
func (v *jsonView) Finish(op wire.Operation, report *operation.Report, exit int) {
	v.line(followLine{
		Type: "result", OperationID: op.ID, State: op.State, Operation: &op, Report: report, Exit: &exit,
	})
}

// Leave has nothing to undo.
func (v *jsonView) Leave() {}
