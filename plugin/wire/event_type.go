package wire

import "slices"

// Severity of an event, in the guide's words.
type Severity string

// The severities, from the least.
const (
	SeverityInfo     Severity = "info"
	SeverityWarning  Severity = "warning"
	SeverityError    Severity = "error"
	SeverityCritical Severity = "critical"
)

// Severities lists every severity, from the least.
func Severities() []Severity {
	return []Severity{SeverityInfo, SeverityWarning, SeverityError, SeverityCritical}
}

// Level is the place of s in [Severities], or -1.
func (s Severity) Level() int { return slices.Index(Severities(), s) }

// Outcome of what an event is about.
type Outcome = string

// The outcomes. Started is the intention, recorded before the effect.
const (
	OutcomeStarted Outcome = "started"
	OutcomeSuccess Outcome = "success"
	OutcomeFailure Outcome = "failure"
	OutcomeDenied  Outcome = "denied"
)

// Outcomes lists every outcome.
func Outcomes() []Outcome {
	return []Outcome{OutcomeStarted, OutcomeSuccess, OutcomeFailure, OutcomeDenied}
}

// EventClass is what kind of event is to be audited, in the guide's words.
type EventClass string

// The classes.
const (
	ClassAuthentication       EventClass = "authentication"
	ClassAuthorization        EventClass = "authorization"
	ClassDatabaseConnections  EventClass = "database_connections"
	ClassQueryExecution       EventClass = "query_execution"
	ClassDataModifications    EventClass = "data_modifications"
	ClassConfigurationChanges EventClass = "configuration_changes"
	ClassSecurityEvents       EventClass = "security_events"
	ClassBackupOperations     EventClass = "backup_operations"
	ClassUserManagement       EventClass = "user_management"
)

// EventClasses lists every class.
func EventClasses() []EventClass {
	return []EventClass{
		ClassAuthentication, ClassAuthorization, ClassDatabaseConnections, ClassQueryExecution, ClassDataModifications,
		ClassConfigurationChanges, ClassSecurityEvents, ClassBackupOperations, ClassUserManagement,
	}
}

// EventType says what an event or a fact is about.
type EventType string

// The event types. Where the guide has a word it is the guide's; the others say
// what the guide knows nothing of. Add a row to eventTypes with each.
const (
	EventOperationStarted  EventType = "operation_started"
	EventOperationFinished EventType = "operation_finished"
	EventStepStarted       EventType = "step_started"
	EventStepFinished      EventType = "step_finished"
	EventAccessGranted     EventType = "access_granted"   // the agent was leased a login
	EventLogout            EventType = "logout"           // it gave the login back
	EventBulkDataExport    EventType = "bulk_data_export" // rows are read, as a whole
	EventTableVerified     EventType = "table_verified"
	EventSandboxStarted    EventType = "sandbox_started"
	EventSandboxRemoved    EventType = "sandbox_removed"
	EventAgentRecovered    EventType = "agent_recovered"

	// What Vault does not audit, told by the plugin as facts.
	EventAccessDenied        EventType = "access_denied"
	EventRateLimitExceeded   EventType = "rate_limit_exceeded"
	EventUnauthorized        EventType = "unauthorized_access_attempt" // an agent touches what is not its own
	EventSuspicious          EventType = "suspicious_activity"         // a login of ours that nobody knows of
	EventSessionExpired      EventType = "session_expired"             // a login was ended because its time was over
	EventRevocationFailed    EventType = "revocation_failed"           // a login could not be ended yet
	EventCredentialRotated   EventType = "credential_rotated"          //nolint:gosec // a word, no credential: of a static role or a connection's own login
	EventKeyRotated          EventType = "key_rotated"                 // a key the plugin signs with
	EventOperationPruned     EventType = "operation_pruned"            // an old operation was removed
	EventCancelRequested     EventType = "cancel_requested"            // a person wants an operation to end
	EventCleanupAcknowledged EventType = "cleanup_acknowledged"        // a person says to have cleaned a target by hand
	EventFactsLost           EventType = "facts_lost"                  // more facts than are kept
)

// eventInfo is a row of the vocabulary.
type eventInfo struct {
	class EventClass
	// guide says that the word is the guide's.
	guide bool
}

var eventTypes = map[EventType]eventInfo{
	EventOperationStarted:    {ClassDataModifications, false},
	EventOperationFinished:   {ClassDataModifications, false},
	EventStepStarted:         {ClassDataModifications, false}, // but see stepClasses
	EventStepFinished:        {ClassDataModifications, false},
	EventAccessGranted:       {ClassAuthorization, true},
	EventLogout:              {ClassAuthentication, true},
	EventBulkDataExport:      {ClassQueryExecution, true},
	EventTableVerified:       {ClassQueryExecution, false},
	EventSandboxStarted:      {ClassSecurityEvents, false},
	EventSandboxRemoved:      {ClassSecurityEvents, false},
	EventAgentRecovered:      {ClassSecurityEvents, false},
	EventAccessDenied:        {ClassAuthorization, true},
	EventRateLimitExceeded:   {ClassSecurityEvents, true},
	EventUnauthorized:        {ClassSecurityEvents, true},
	EventSuspicious:          {ClassSecurityEvents, true},
	EventSessionExpired:      {ClassAuthentication, true},
	EventRevocationFailed:    {ClassUserManagement, false},
	EventCredentialRotated:   {ClassUserManagement, false},
	EventKeyRotated:          {ClassConfigurationChanges, false},
	EventOperationPruned:     {ClassSecurityEvents, false},
	EventCancelRequested:     {ClassDataModifications, false},
	EventCleanupAcknowledged: {ClassDataModifications, false},
	EventFactsLost:           {ClassSecurityEvents, false},
}

// stepClasses are the classes of step_started and step_finished.
var stepClasses = map[Step]EventClass{
	StepSandbox:  ClassSecurityEvents,
	StepInspect:  ClassQueryExecution,
	StepPlan:     ClassAuthorization,
	StepAccounts: ClassDatabaseConnections,
	StepSnapshot: ClassQueryExecution,
	StepStage:    ClassDataModifications,
	StepSchema:   ClassDataModifications,
	StepCopy:     ClassDataModifications,
	StepIndex:    ClassDataModifications,
	StepVerify:   ClassQueryExecution,
	StepSwitch:   ClassDataModifications,
	StepDropOld:  ClassDataModifications,
	StepCleanup:  ClassDataModifications,
	StepRevoke:   ClassDatabaseConnections,
	StepFinish:   ClassDataModifications,
}

// stepWords are the guide's words for what a finished step has done.
var stepWords = map[Step]EventType{
	StepSchema: "schema_change", StepIndex: "schema_change", StepSwitch: "schema_change",
	StepDropOld: "data_deletion", StepCleanup: "data_deletion",
}

// renamed are the words of events that earlier agents wrote. Their spools are
// still delivered, and audit files still read.
var renamed = map[EventType]EventType{
	"account_leased": EventAccessGranted, "account_returned": EventLogout, "data_access": EventBulkDataExport,
}

// EventTypes lists every event type, sorted.
func EventTypes() []EventType {
	all := make([]EventType, 0, len(eventTypes))
	for t := range eventTypes {
		all = append(all, t)
	}
	slices.Sort(all)
	return all
}

// Canonical is the present word for t, where an older agent had another.
func (t EventType) Canonical() EventType {
	if now, ok := renamed[t]; ok {
		return now
	}
	return t
}

// Valid reports whether t is in the vocabulary, or was.
func (t EventType) Valid() bool { _, ok := eventTypes[t.Canonical()]; return ok }

// Guide reports whether the word is the guide's.
func (t EventType) Guide() bool { return eventTypes[t.Canonical()].guide }

// EventWords are all words that what is told goes by, the most exact first: its
// type, the guide's word for what the step has done, and its class.
func EventWords(t EventType, phase Step, kind Kind) []string {
	t = t.Canonical()
	words := []string{string(t)}
	class := eventTypes[t].class
	switch t {
	case EventStepStarted, EventStepFinished:
		if word := stepWords[phase]; word != "" {
			words = append(words, string(word))
		}
		if of, ok := stepClasses[phase]; ok {
			class = of
		}
	case EventOperationStarted, EventOperationFinished:
		if kind == KindBackup || kind == KindRestore {
			class = ClassBackupOperations
		}
	default:
	}
	return append(words, string(class))
}

// ValidEventWord reports whether any event can go by word.
func ValidEventWord(word string) bool {
	if EventType(word).Valid() || slices.Contains(EventClasses(), EventClass(word)) {
		return true
	}
	for _, known := range stepWords {
		if string(known) == word {
			return true
		}
	}
	return false
}

// ValidEvent names the first field of e that is not of the vocabulary, "" when
// all are.
func ValidEvent(e Event) (field string) {
	switch {
	case !e.EventType.Valid():
		return "event_type"
	case e.Severity.Level() < 0:
		return "severity"
	case !slices.Contains(Outcomes(), e.Outcome):
		return "outcome"
	case e.Phase != "" && !slices.Contains(Steps(), e.Phase):
		return "phase"
	case e.Code != "" && !e.Code.Valid():
		return "code"
	}
	return ""
}
