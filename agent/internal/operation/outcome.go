package operation

// Outcome is how an agent's work on one claim ended, from where the agent stands.
type Outcome string

// The outcomes.
const (
	OutcomeSucceeded     Outcome = "succeeded"
	OutcomeFailed        Outcome = "failed"
	OutcomeCancelled     Outcome = "cancelled"
	OutcomePlanned       Outcome = "planned"        // the plan was sent; others decide what follows
	OutcomeLost          Outcome = "lost"           // the claim was not this agent's any more
	OutcomeCleaned       Outcome = "cleaned"        // what an earlier claim had left is gone
	OutcomeCleanupFailed Outcome = "cleanup_failed" // it is not
)

// Outcomes lists every outcome.
func Outcomes() []Outcome {
	return []Outcome{
		OutcomeSucceeded, OutcomeFailed, OutcomeCancelled, OutcomePlanned, OutcomeLost, OutcomeCleaned, OutcomeCleanupFailed,
	}
}
