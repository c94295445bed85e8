package wire

// State is where an operation is in its life.
type State string

// The states, in the order of a normal life.
const (
	StateRequested        State = "requested"
	StatePlanning         State = "planning" // claim A
	StateAwaitingApproval State = "awaiting_approval"
	StateQueued           State = "queued"
	StateRunning          State = "running" // claim B
	StateVerifying        State = "verifying"
	StateSucceeded        State = "succeeded"
	StateFailed           State = "failed"
	StateCancelled        State = "cancelled"
	StateExpired          State = "expired"
	StateDenied           State = "denied"
)

// States lists every state.
func States() []State {
	return []State{
		StateRequested, StatePlanning, StateAwaitingApproval, StateQueued, StateRunning, StateVerifying,
		StateSucceeded, StateFailed, StateCancelled, StateExpired, StateDenied,
	}
}

var transitions = map[State][]State{
	StateRequested:        {StatePlanning, StateCancelled, StateExpired, StateDenied, StateFailed},
	StatePlanning:         {StateRequested, StateAwaitingApproval, StateQueued, StateDenied, StateFailed, StateCancelled, StateExpired},
	StateAwaitingApproval: {StateQueued, StateDenied, StateFailed, StateCancelled, StateExpired},
	StateQueued:           {StateRunning, StateAwaitingApproval, StateFailed, StateCancelled, StateExpired, StateDenied},
	StateRunning:          {StateVerifying, StateFailed, StateCancelled},
	StateVerifying:        {StateSucceeded, StateFailed, StateCancelled},
	StateSucceeded:        nil,
	StateFailed:           nil,
	StateCancelled:        nil,
	StateExpired:          nil,
	StateDenied:           nil,
}

// Next lists the states that may follow s. From planning back to requested is
// an agent that was lost before anything happened; from queued back to
// awaiting_approval are approvals that stopped to count before an agent came.
func (s State) Next() []State { return transitions[s] }

// CanBecome reports whether s may be followed by next.
func (s State) CanBecome(next State) bool {
	for _, candidate := range transitions[s] {
		if candidate == next {
			return true
		}
	}
	return false
}

// Final reports whether an operation in s has ended.
func (s State) Final() bool { next, ok := transitions[s]; return ok && len(next) == 0 }

// Valid reports whether s is a known state.
func (s State) Valid() bool { _, ok := transitions[s]; return ok }

// ClaimPhase returns the phase of the claim an agent holds in s, or "" when
// nobody holds one.
func (s State) ClaimPhase() Phase {
	switch s {
	case StatePlanning:
		return PhasePlanning
	case StateRunning, StateVerifying:
		return PhaseRunning
	default:
		return ""
	}
}

// Phase is what an agent claimed an operation for.
type Phase string

// The phases. Cleanup is a claim on an operation that has ended while its agent
// was away and left something at the target.
const (
	PhasePlanning Phase = "planning"
	PhaseRunning  Phase = "running"
	PhaseCleanup  Phase = "cleanup"
)

// Purposes tells which account an agent holding a claim of phase p may have on
// each side. No other account exists for an operation.
func (p Phase) Purposes() map[Side]Purpose {
	switch p {
	case PhasePlanning:
		return map[Side]Purpose{Source: PurposeInspect, Target: PurposeInspect}
	case PhaseRunning:
		return map[Side]Purpose{Source: PurposeRead, Target: PurposeWrite}
	case PhaseCleanup:
		return map[Side]Purpose{Target: PurposeWrite}
	default:
		return nil
	}
}
