package account

// Leaver is a [Driver] that keeps sessions which can be in somebody's way.
type Leaver interface {
	// Leave ends the sessions that are not in use, and those that are as soon as
	// they are not. Later calls open new ones.
	Leave()
}

// Leave has a driver that keeps sessions end them.
func Leave(driver Driver) {
	if leaver, ok := driver.(Leaver); ok {
		leaver.Leave()
	}
}
