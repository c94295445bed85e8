package wire

// Step is one part of an operation's work, the boundary at which intentions are
// recorded and events are written. Names are the same in journals, events,
// progress and results.
type Step string

// The steps, in order. Not every engine has all of them.
const (
	StepSandbox  Step = "sandbox"  // make the isolated place
	StepInspect  Step = "inspect"  // read catalogs of both sides
	StepPlan     Step = "plan"     // send the plan, get the decision
	StepAccounts Step = "accounts" // lease the running accounts
	StepSnapshot Step = "snapshot" // freeze the source's view, compare its shape
	StepStage    Step = "stage"    // make the staging place
	StepSchema   Step = "schema"   // create tables and types in it
	StepCopy     Step = "copy"     // move the rows
	StepIndex    Step = "index"    // keys, indexes, constraints, triggers
	StepVerify   Step = "verify"   // compare both sides
	StepSwitch   Step = "switch"   // put the copy in place, atomically
	StepDropOld  Step = "drop_old" // remove what was replaced
	StepCleanup  Step = "cleanup"  // remove what a failed run left at the target
	StepRevoke   Step = "revoke"   // give the accounts back
	StepFinish   Step = "finish"
)

// Steps lists every step in order.
func Steps() []Step {
	return []Step{
		StepSandbox, StepInspect, StepPlan, StepAccounts, StepSnapshot, StepStage, StepSchema, StepCopy, StepIndex,
		StepVerify, StepSwitch, StepDropOld, StepCleanup, StepRevoke, StepFinish,
	}
}

// Progress is what an agent tells about a running operation with each poll. The
// plugin keeps it in memory only.
type Progress struct {
	OperationID string `json:"operation_id"`
	Step        Step   `json:"step"`
	TablesDone  int    `json:"tables_done"`
	TablesTotal int    `json:"tables_total"`
	Rows        int64  `json:"rows"`
	Bytes       int64  `json:"bytes"`
	BytesTotal  int64  `json:"bytes_total"` // estimate
	Table       string `json:"table,omitempty"`
}
